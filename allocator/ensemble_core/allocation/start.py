"""What an optimisation begins with: the smallest batch sizes everywhere, and what is served or asked for already."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ensemble_core.allocation.algorithms import DeviceKind, DoesNotFitError, worst_fit_decreasing
from ensemble_core.allocation.candidate import Candidate
from ensemble_core.allocation.construct import construct
from ensemble_core.allocation.guided import unchanged
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.memory import Memory
from ensemble_core.allocation.model import Problem
from ensemble_core.allocation.objectives import objective_of, up_to
from ensemble_core.allocation.result import AllocationResult, Subject, device_fingerprint
from ensemble_core.allocation.rows import group_of
from ensemble_core.allocation.stored import Results
from ensemble_core.errors import UserError
from ensemble_core.library.parsing import validated


def start_of(
    where: str, subject: Subject, memory: Memory, problem: Problem, incumbent: Candidate | None
) -> Candidate | None:
    """Worst-fit-decreasing; for the default algorithm, where that fails, what is constructed, or the incumbent alone.

    Raises:
        UserError: worst-fit-decreasing fails, and nothing else is known to fit.
    """
    spec, routing = subject.deployment.spec.optimization, subject.deployment.spec.serving.routing
    try:
        return Candidate(starting_matrix(where, subject, memory))
    except UserError:
        if spec.algorithm != "guided":
            raise
        built = construct(up_to(problem, problem.batch_sizes[0]))
        if built is not None:
            return unchanged(problem, problem.matrix(built[0]), routing)
        if incumbent is None or spec.objective == "fewest-devices":
            raise
        return None


def starting_matrix(where: str, subject: Subject, memory: Memory) -> Matrix:
    """Worst-fit-decreasing at the smallest batch size.

    Raises:
        UserError: the devices cannot hold the members; says which, where, and by how much.
    """
    spec = subject.deployment.spec
    kinds: list[DeviceKind] = [row.type for row in subject.devices]
    batch_size = spec.batch_sizes[0]
    try:
        return worst_fit_decreasing(memory, kinds, batch_size)
    except DoesNotFitError as lack:
        raise does_not_fit(where, subject, lack) from lack


def incumbent_of(where: str, results: Results, subject: Subject, memory: Memory, problem: Problem) -> Candidate | None:
    """The matrix that the spec gives, or the best allocation that the library has for such members and devices.

    Those measured under the same load, by the same server, come first, by the objective; the others by samples/s. What
    was replaced is behind all that was not: it may have been measured on a better day. Reference algorithms have none.
    """
    if subject.deployment.spec.optimization.algorithm != "guided":
        return None
    routing = subject.deployment.spec.serving.routing
    if subject.deployment.spec.optimization.matrix:
        matrix, shares = given_matrix(where, subject, memory), given_shares(subject)
        return unchanged(problem, matrix, routing) if shares is None else Candidate.weighted(matrix, shares)
    models = [member.sha256 for member in subject.members]
    allowed = set(subject.deployment.spec.batch_sizes)
    known = [
        found
        for key, content in sorted(results.results("allocations").items())
        if (found := validated(AllocationResult, content, f"allocations/{key}.json"))
        and [member.sha256 for member in found.members] == models
        and found.device_fingerprint == device_fingerprint(subject.devices)
        and {size for row in found.matrix for size in row if size} <= allowed
        and (routing in ("auto", found.candidate.routing) or not found.candidate.matrix.divided)
        and memory.fits(found.candidate.matrix)
    ]
    comparable = [found for found in known if found.conditions == subject.conditions()]
    objective = objective_of(subject.deployment.spec)
    if comparable:
        lost = {found.replaced for found in comparable}
        standing = [found for found in comparable if found.candidate not in lost] or comparable
        return max(standing, key=lambda found: objective.score(found.throughput.measured())).candidate
    fastest = max(known, key=lambda found: found.throughput.samples_per_second, default=None)
    return None if fastest is None else fastest.candidate


def given_matrix(where: str, subject: Subject, memory: Memory) -> Matrix:
    """The spec's own matrix.

    Raises:
        UserError: it has another number of members, or exceeds a device's memory.
    """
    spec = subject.deployment.spec.optimization
    field = field_of(where, "optimization.matrix")
    names = [row.name for row in subject.devices]
    rows = {name: [0] * len(subject.members) for name in names}
    for index, row in enumerate(spec.matrix):
        if len(row.batch_sizes) != len(subject.members):
            problem = f"has {len(row.batch_sizes)} entries for {len(subject.members)} members"
            raise UserError(f"{field}[{index}].batchSizes", problem)
        rows[row.device] = list(row.batch_sizes)
    matrix = Matrix.of([rows[name] for name in names])
    for device, excess in memory.overflows(matrix):
        lacks = subject.devices[device]
        raise UserError(field, f"takes {excess:.0f} MiB more than the {lacks.memory_mib:.0f} MiB of {lacks.name}")
    return matrix


def given_shares(subject: Subject) -> npt.NDArray[np.float64] | None:
    """Shares of the samples in the spec's own matrix, shape (D, M); none if it has none."""
    given = subject.deployment.spec.optimization
    if not given.has_shares:
        return None
    rows = {row.device: row.all_shares for row in given.matrix}
    return np.array([rows.get(row.name, (0.0,) * len(subject.members)) for row in subject.devices])


def field_of(where: str, name: str) -> str:
    """A field of the same spec as the list of devices."""
    return f"{where.removesuffix('devices')}{name}"


def does_not_fit(where: str, subject: Subject, lack: DoesNotFitError) -> UserError:
    spec, row = subject.deployment.spec, subject.devices[lack.device]
    return UserError(
        f"{where}[{group_of(spec.devices, row)}]",
        f"the devices cannot hold the members: {subject.members[lack.member].model_id} needs {lack.needed:.0f} MiB "
        f"at batch size {spec.batch_sizes[0]}, but {row.name} has {lack.left:.0f} of {row.memory_mib:.0f} "
        f"MiB left, {lack.needed - lack.left:.0f} MiB too few; add devices or memoryMiB, or choose a smaller budget",
    )
