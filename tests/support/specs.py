"""Valid custom resources of every shape, for hypothesis."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True)
secrets = st.sampled_from(["credentials", "s3.secret", "s3-other"])
folders = st.sampled_from(["", "a", "teams/b", "1e3", "_x=1"])
cores = st.floats(0.1, 8, allow_nan=False)


@st.composite
def storages(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.booleans()):
        claim = draw(st.sampled_from(["libraries", "data", "1e5"]))
        return {"persistentVolumeClaim": {"claimName": claim, "subPath": draw(folders)}}
    s3 = {"bucket": "libraries", "prefix": draw(folders)}
    s3 |= {"region": "eu-1"} if draw(st.booleans()) else {}
    return {"s3": s3} | ({"credentialsSecretRef": {"name": draw(secrets)}} if draw(st.booleans()) else {})


@st.composite
def overrides(draw: st.DrawFn) -> dict[str, Any]:
    """`podOverrides`, hostile ones too."""
    quantities = st.sampled_from([1, "500m", "4Gi"])
    amounts = st.dictionaries(st.sampled_from(["cpu", "memory", "nvidia.com/gpu"]), quantities, max_size=3)
    keys = st.sampled_from(
        [
            "team",
            "ensemble-operator.io/uid",
            "app.kubernetes.io/component",
            "container.apparmor.security.beta.kubernetes.io/ensemble",
            "seccomp.security.alpha.kubernetes.io/pod",
        ]
    )
    given: dict[str, Any] = {
        "labels": draw(st.dictionaries(keys, st.sampled_from(["a", "unconfined"]), max_size=3)),
        "annotations": draw(st.dictionaries(keys, st.sampled_from(["a", "unconfined"]), max_size=3)),
        "nodeSelector": draw(st.dictionaries(keys, st.just("x"), max_size=2)),
        "imagePullSecrets": draw(st.lists(st.sampled_from(["registry", "other"]), max_size=2)),
    }
    if draw(st.booleans()):
        given["resources"] = {"requests": draw(amounts), "limits": draw(amounts)}
    if draw(st.booleans()):
        given["tolerations"] = [{"key": "gpu", "operator": "Exists"}]
        given["affinity"] = {"podAffinity": {}}
        given["priorityClassName"] = "batch"
        given["runtimeClassName"] = "nvidia"
    return given


@st.composite
def workloads(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of every specification."""
    given: dict[str, Any] = {"podOverrides": draw(overrides()), "suspend": draw(st.booleans())}
    return given | ({"serviceAccountName": "cloud"} if draw(st.booleans()) else {})


@st.composite
def searches(draw: st.DrawFn) -> dict[str, Any]:
    """The specification of an HPOSearch."""
    trials = draw(st.integers(1, 200))
    cpu = draw(cores)
    gpu = draw(st.one_of(st.floats(0, 1, allow_nan=False), st.integers(0, 4).map(float)))
    datasets = st.one_of(
        st.just({"builtin": "digits"}),
        st.just({"procedural": {"samples": 400, "seed": 1}}),
        storages().map(lambda storage: {"storage": storage, "imageFolder": "images/2024"}),
    )
    word = st.text(min_size=1, max_size=20)
    return draw(workloads()) | {
        "library": {"storage": draw(storages()), "deletionPolicy": draw(st.sampled_from(["Retain", "Delete"]))},
        "dataset": draw(datasets),
        "maxTrialCount": trials,
        "maxFailedTrialCount": draw(st.integers(0, 9)),
        "parallelTrialCount": draw(st.integers(1, 64)),
        "resourcesPerTrial": {"cpu": cpu, "gpu": gpu},
        "workers": {
            "replicas": draw(st.integers(1, 5)),
            "cpu": draw(st.integers(math.ceil(cpu), 32)),
            "gpu": draw(st.integers(math.ceil(gpu), 4)),
            "gpuResourceName": draw(st.sampled_from(["nvidia.com/gpu", "nvidia.com/mig-1g.10gb"])),
            "memoryMiB": draw(st.integers(256, 65536)),
        },
        "parameters": [
            {
                "name": "convolution",
                "parameterType": "categorical",
                "feasibleSpace": {"list": draw(st.lists(word, min_size=1, max_size=4, unique=True))},
            }
        ],
        "engine": draw(st.sampled_from(["auto", "rayjob", "job"])),
    }


@st.composite
def selections(draw: st.DrawFn) -> dict[str, Any]:
    """The specification of an EnsembleSelection whose searches are called `a` and `b`."""
    sources = st.one_of(
        st.sampled_from(["a", "b"]).map(lambda name: {"hpoSearchName": name}),
        storages().map(lambda storage: {"storage": storage}),
    )
    limits = st.sampled_from(["inferenceTimeSeconds", "memoryMiB", "parametersMillions"])
    budgets = draw(st.lists(st.dictionaries(limits, st.floats(0.1, 100), min_size=1), min_size=1, max_size=4))
    return (
        draw(workloads())
        | {
            "sources": draw(st.lists(sources, min_size=1, max_size=4, unique_by=str)),
            "budgets": [{"name": f"budget-{i}", **limits} for i, limits in enumerate(budgets)],
            "cost": {"coresPerDevice": draw(st.integers(1, 16))},
            "updatePolicy": {"mode": draw(st.sampled_from(["OnLibraryChange", "Once"]))},
        }
        | ({"library": draw(storages())} if draw(st.booleans()) else {})
    )
