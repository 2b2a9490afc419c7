"""What can be known to be wrong with a run before its first stage, so that nothing is written if anything is."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from ensemble_core.allocation.machine import this_machine
from ensemble_core.allocation.rows import device_rows
from ensemble_core.api.documents import Documents
from ensemble_core.errors import UserError
from ensemble_core.profiling.measure import find_device


def check_machine(documents: Documents) -> None:
    """UserError unless this machine has what models are measured on and served from."""
    deployment = documents.deployment()
    selection = documents.selection(deployment.spec.selection_ref.name)
    find_device(f"{documents.file}: EnsembleSelection {selection.metadata.name}", selection.spec.cost)
    devices = deployment.spec.devices
    where = f"{documents.file}: EnsembleDeployment {deployment.metadata.name}: spec.devices"
    device_rows(where, devices, this_machine(devices))


def check_searches(documents: Documents) -> None:
    """UserError if a search that the selection names cannot begin, or it names none.

    The trainer is found as the command `train` is: by its entry point.
    """
    selection = documents.selection(documents.deployment().spec.selection_ref.name)
    searches = documents.source_searches(selection)
    if not searches:
        where = f"{documents.file}: EnsembleSelection {selection.metadata.name}: spec.sources"
        problem = "needs a source with hpoSearchName: the endpoint is checked with that search's held-out samples"
        instead = "for libraries without a search call `ensemble profile`, `select`, `allocate` and `serve`"
        raise UserError(where, f"{problem}; {instead}")
    (entry,) = entry_points(group="ensemble.commands", name="train")
    try:
        trainer: Any = entry.load()
    except ModuleNotFoundError as missing:
        raise UserError("", f"training needs the package {missing.name}, which is not installed") from missing
    for name in searches:
        trainer.check(documents, name)
