"""What `ensemble train` refuses before anything is written, and before Ray starts."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ensemble_core import cli
from ensemble_core.api.hposearch import HPOSearchSpec
from ensemble_core.errors import UserError
from ensemble_core.library.inputs import RECORD
from ensemble_core.library.library import Library
from ensemble_core.library.store import LocalStore
from ensemble_trainer.slots import _share, ray_address, shortage


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSEMBLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def write_spec(folder: Path, **changes: Any) -> Path:
    rng = np.random.default_rng(0)
    if not (folder / "data.npz").exists():
        images = rng.integers(0, 255, (60, 8, 8, 1), dtype=np.uint8)
        np.savez(folder / "data.npz", images=images, labels=np.arange(60) % 3)
    spec = {
        "library": {"storage": {"path": "library"}},
        "dataset": {"arrays": "data.npz"},
        "maxTrialCount": 4,
        **changes,
    }
    head = {"apiVersion": "ensemble-operator.io/v1alpha1", "kind": "HPOSearch", "metadata": {"name": "noise"}}
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump({**head, "spec": spec}))
    return file


def train(file: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    code = cli.main(["train", "--spec", str(file), *more])
    return code, capsys.readouterr().err


def test_a_library_that_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: LocalStore) -> None:
        raise UserError(store.url, "cannot be written")

    monkeypatch.setattr(LocalStore, "check_writable", refuse)
    assert train(write_spec(tmp_path), capsys) == (2, f"ensemble train: {tmp_path}/library: cannot be written\n")
    assert not (tmp_path / "library").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resourcesPerTrial": {"cpu": 256}}, "spec.resourcesPerTrial.cpu: 256 is more than"),
        (
            {"parameters": [{"name": "lr", "parameterType": "double", "feasibleSpace": {"min": 0, "max": 1}}]},
            "search.yaml (HPOSearch noise): spec.parameters[0].name: 'lr' is unknown",
        ),
        ({"dataset": {"arrays": "missing.npz"}}, "missing.npz"),
    ],
)
def test_bad_input_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    code, error = train(write_spec(tmp_path, **changes), capsys, "--report", f"file:{tmp_path}/report.json")
    assert code == 2
    assert message in error
    assert not (tmp_path / "library").exists()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["state"] == "Failed"
    assert message in f"{report['error']['field']}: {report['error']['message']}"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_library_of_other_data_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ensemble_core.api.documents import load_documents
    from ensemble_trainer.datasets import load_dataset

    file = write_spec(tmp_path)
    dataset = load_dataset(load_documents(file).search().spec.dataset, None)
    Library.create(LocalStore(tmp_path / "library"), dataset.header(), dataset.labels())
    before = files(tmp_path / "library")
    code, error = train(write_spec(tmp_path, dataset={"arrays": "data.npz", "split": {"seed": 5}}), capsys)
    assert code == 2
    assert "fingerprint" in error
    assert files(tmp_path / "library") == before


def test_the_validation_samples_are_kept_once(tmp_path: Path) -> None:
    from ensemble_core.api.documents import load_documents
    from ensemble_trainer.commands.train import open_search
    from ensemble_trainer.datasets import load_dataset

    search = load_documents(write_spec(tmp_path)).search()
    library = open_search(search, local=True)[0].library
    kept = library.inputs()
    assert kept is not None
    validation = load_dataset(search.spec.dataset, None).validation
    assert np.array_equal(np.load(library.samples(kept)), validation.images[list(kept.rows)])
    before = files(tmp_path / "library")
    open_search(search, local=True)
    assert files(tmp_path / "library") == before
    library.remove_inputs()
    open_search(search, local=True)
    assert library.inputs() is None


def test_samples_that_are_removed_while_they_are_kept_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble_core.api.documents import load_documents
    from ensemble_trainer.commands.train import open_search

    search = load_documents(write_spec(tmp_path)).search()
    write = LocalStore.write

    def removed_before(store: LocalStore, path: str, data: bytes) -> None:
        if path == RECORD:
            Library.open(store).remove_inputs()
        write(store, path, data)

    monkeypatch.setattr(LocalStore, "write", removed_before)
    library = open_search(search, local=True)[0].library
    assert library.store.list("splits/validation/inputs") == ()
    assert not library.wants_inputs()


def test_the_given_cluster_goes_before_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_address(None) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ray_address(None) == "10.0.0.1:6379"
    assert ray_address("there:1") == "there:1"


def test_the_driver_imports_no_torch_and_no_ray_before_there_is_work(tmp_path: Path) -> None:
    import subprocess

    code = "import sys, ensemble_trainer.commands.train; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=True, env=os.environ)
    assert done.stdout.decode().strip() == "[]"


@pytest.mark.parametrize(
    ("resources", "present", "slots", "share"),
    [
        ({}, 0, 4, 0.0),
        ({}, 1, 4, 0.25),  # four trials share the only GPU
        ({}, 2, 3, 0.5),  # two on one, one on the other
        ({}, 1, 3, 0.3333),
        ({}, 8, 4, 1.0),
        ({"gpu": 0}, 8, 4, 0.0),
        ({"gpu": 0.5}, 8, 4, 0.5),
    ],
)
def test_gpus_are_shared_among_the_slots(resources: dict[str, Any], present: float, slots: int, share: float) -> None:
    content = {
        "library": {"storage": {"path": "/unused"}},
        "dataset": {"builtin": "digits"},
        "maxTrialCount": 9,
        "parallelTrialCount": slots,
        "resourcesPerTrial": resources,
    }
    assert _share(HPOSearchSpec.model_validate(content), present) == share


HEAD = {"memory": 1e9}  # where no trial may run


@pytest.mark.parametrize(
    ("cpus", "gpus", "slots", "nodes", "told"),
    [
        (1, 0, 2, [{"CPU": 2}], ""),
        (1, 0, 2, [HEAD, {"CPU": 1}, {"CPU": 1}], ""),
        (0.1, 0, 30, [{"CPU": 3}], ""),  # no rounding
        (1, 0.3333, 3, [{"CPU": 4, "GPU": 1}], ""),
        (1, 2, 4, [{"CPU": 4, "GPU": 8}], ""),
        (4, 0, 2, [HEAD], "waits for 4 CPUs per trial (spec.resourcesPerTrial); the cluster's largest node has 0 CPUs"),
        (4, 0, 2, [HEAD, {"CPU": 2}, {"CPU": 3}], "the cluster's largest node has 3 CPUs"),
        (1, 1, 1, [{"CPU": 8}, {"CPU": 2}], "waits for 1 CPU and 1 GPU per trial"),
        (4, 1, 1, [{"CPU": 8}, {"CPU": 2, "GPU": 1}], "largest node has 2 CPUs and 1 GPU"),
        (2, 0, 4, [{"CPU": 3}, {"CPU": 3}], "2 of 4 trials (spec.parallelTrialCount) fit: each takes 2 CPUs, the"),
        (1, 0.6, 4, [{"CPU": 8, "GPU": 2}], "2 of 4 trials (spec.parallelTrialCount) fit: each takes 1 CPU and 0.6 GP"),
    ],
)
def test_what_a_cluster_lacks_is_told(
    cpus: float, gpus: float, slots: int, nodes: list[dict[str, float]], told: str
) -> None:
    found = shortage(cpus, gpus, slots, nodes)
    assert told in found
    assert bool(told) == bool(found)
