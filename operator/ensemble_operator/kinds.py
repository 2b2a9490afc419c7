"""The kinds of custom resources that the operator manages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensemble_operator import ensembledeployment, ensembleselection, hposearch
from ensemble_operator.world import Kind

KINDS: Mapping[str, Kind[Any]] = {
    "HPOSearch": hposearch.KIND,
    "EnsembleSelection": ensembleselection.KIND,
    "EnsembleDeployment": ensembledeployment.KIND,
}
