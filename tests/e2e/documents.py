"""The three documents of the digits sample, changed as a test needs them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from tests.e2e.cluster import Manifest

HERE = Path(__file__).parent
CLAIM = HERE / "claim.yaml"
SAMPLE: dict[str, Manifest] = {one["kind"]: one for one in yaml.safe_load_all((HERE / "digits-claim.yaml").read_text())}
SMALL: Manifest = {"requests": {"cpu": "100m"}}  # so that several find room on a node of two cores


def search(trials: int, epochs: int = 4, **spec: Any) -> Manifest:
    """Training of so many trials, one after the other; of some seconds each."""
    return _changed(
        "HPOSearch",
        maxTrialCount=trials,
        maxFailedTrialCount=0,
        trainer={"family": "resnet", "maxEpochs": epochs},
        **spec,
    )


def selection(**spec: Any) -> Manifest:
    return _changed("EnsembleSelection", **spec)


def deployment(**spec: Any) -> Manifest:
    return _changed("EnsembleDeployment", **spec)


def _changed(kind: str, **spec: Any) -> Manifest:
    document = copy.deepcopy(SAMPLE[kind])
    document["spec"] |= {"podOverrides": {"resources": SMALL}, **spec}
    return document


def labelled(document: Manifest, **labels: str) -> Manifest:
    return {**document, "metadata": {**document["metadata"], "labels": labels}}


def gpus(count: int) -> Manifest:
    """Resources of a pod that takes so many of the cluster's GPUs, whatever it computes on."""
    held = {"nvidia.com/gpu": str(count)}
    return {"requests": {**SMALL["requests"], **held}, "limits": held}
