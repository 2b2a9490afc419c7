"""Random libraries as arrays and as folders, and a naive SMOBF to compare with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from ensemble_core.api.common import Storage
from ensemble_core.api.documents import Documents, load_documents
from ensemble_core.library.library import Library
from ensemble_core.library.records import BatchProfile, ModelRecord, Origin, Profile, Signature
from ensemble_core.library.splits import LabelledIds, make_header
from ensemble_core.library.store import open_store
from ensemble_core.metrics import CLIP, metrics

Array = NDArray[Any]
Naive = tuple[int, float, float, float]  # row, score, cross-entropy, C/B of a step


@dataclass(frozen=True)
class Pool:
    """Probabilities (M, N, C) float32, labels (N,), costs (L, M)."""

    probabilities: Array
    labels: Array
    costs: Array

    @property
    def true_class(self) -> Array:
        return self.probabilities[:, np.arange(len(self.labels)), self.labels]

    def cross_entropy(self, members: Sequence[int], extra: int) -> float:
        """Of the float64 mean over full rows: members in ascending order, then one more."""
        total = np.zeros(self.probabilities.shape[1:])
        for member in sorted(members):
            total = total + self.probabilities[member]
        mean = (total + self.probabilities[extra]) / (len(members) + 1)
        return -float(np.log(np.maximum(mean[np.arange(len(self.labels)), self.labels], CLIP)).mean())

    def cost(self, members: Sequence[int]) -> Array:
        spent = np.zeros(len(self.costs))
        for member in sorted(members):
            spent = spent + self.costs[:, member]
        return spent


def make_pool(models: int, samples: int, classes: int, seed: int, quantities: int = 1) -> Pool:
    """Models of different skill whose errors are correlated; some confident and wrong, down to probability 0."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, samples)
    shared = random.normal(size=(samples, classes))
    probabilities = np.empty((models, samples, classes), np.float32)
    for model in range(models):
        logits = 0.3 * shared + random.normal(size=(samples, classes)) * random.uniform(0.8, 1.2)
        logits[np.arange(samples), labels] += random.uniform(0.8, 2)
        logits *= random.choice([0.7, 1, 1, 1, 1.5, 40])
        logits -= logits.max(axis=1, keepdims=True)
        exponents = np.exp(logits)
        probabilities[model] = exponents / exponents.sum(axis=1, keepdims=True)
    return Pool(probabilities, labels, random.uniform(0.1, 3, (quantities, models)))


def naive_smobf(pool: Pool, limits: Array, weights: Sequence[float], kept: Sequence[int]) -> list[list[Naive]]:
    """Paths of (row, score, cross-entropy, ratio) for each weight, by float64 averages of full predictions."""
    return [_naive_run(pool, limits, weight, kept) for weight in weights]


def _naive_run(pool: Pool, limits: Array, weight: float, kept: Sequence[int]) -> list[Naive]:
    members: list[int] = []
    steps: list[Naive] = []
    while True:
        options = []
        for row in kept:
            cost = pool.cost(members) + pool.costs[:, row]
            if row in members or (cost > limits).any():
                continue
            ratio = float((cost / limits).max())
            cross_entropy = pool.cross_entropy(members, row)
            options.append(((1 - weight) * cross_entropy + weight * ratio, ratio, row, cross_entropy))
        if not options or (steps and min(options)[0] >= steps[-1][1]):
            return steps
        score, ratio, row, cross_entropy = min(options)
        steps.append((row, score, cross_entropy, ratio))
        members.append(row)


def best_subset(pool: Pool, limits: Array, kept: Sequence[int]) -> tuple[float, tuple[int, ...]]:
    """The lowest cross-entropy over all affordable subsets."""
    subsets = itertools.chain.from_iterable(itertools.combinations(kept, size) for size in range(1, len(kept) + 1))
    return min((pool.cross_entropy(s[:-1], s[-1]), s) for s in subsets if (pool.cost(s) <= limits).all())


@dataclass(frozen=True)
class Reference:
    """The helpers above, for tests."""

    pool: Callable[..., Pool]
    smobf: Callable[..., list[list[Naive]]]
    best_subset: Callable[..., tuple[float, tuple[int, ...]]]


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference(make_pool, naive_smobf, best_subset)


DEVICE = "cpu-test-1c"


class Workspace:
    """A folder with libraries and a document that selects from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "documents.yaml"

    def library(
        self, name: str, pool: Pool, models: dict[str, int], heldout: Pool | None = None, **changes: Any
    ) -> Library:
        """A library with the pool's rows as models; the second half of the samples is held out unless given."""
        half = len(pool.labels) // 2
        parts = {"validation": slice(0, half), "heldout": slice(half, None)}
        ids = np.array([f"s{i}" for i in range(len(pool.labels))])
        splits = {k: LabelledIds(ids[part], pool.labels[part].astype(np.int64)) for k, part in parts.items()}
        signature = Signature(input_type="uint8", input_shape=(4,), classes=pool.probabilities.shape[2])
        names = [f"c{i}" for i in range(signature.classes)]
        store = open_store(Storage(path=str(self.folder / name)))
        library = Library.create(store, make_header(signature, names, splits), splits)
        for model, row in models.items():
            arrays = {
                "validation": pool.probabilities[row, :half],
                "heldout": (heldout or pool).probabilities[row, half:],
            }
            self._publish(library, model, arrays, splits["validation"].labels, **changes)
        return library

    def _publish(self, library: Library, model: str, arrays: dict[str, Array], labels: Array, **changes: Any) -> None:
        files = {}
        for split, array in arrays.items():
            files[f"predictions-{split}.npy"] = self.folder / f"{model}-{split}.npy"
            np.save(files[f"predictions-{split}.npy"], array, allow_pickle=False)
        files["model.onnx"] = self.folder / f"{model}.onnx"
        files["model.onnx"].write_text(model)
        if not changes.get("servable", True):
            del files["model.onnx"]
        record = ModelRecord(
            id=model,
            family="test",
            hyperparameters={},
            validation=metrics(arrays["validation"], labels),
            parameters=changes.get("parameters", 1_000_000),
            origin=Origin(),
            servable=changes.get("servable", True),
            files={},
        )
        library.publish(record, files)

    def profile(self, library: Library, costs: dict[str, float], **changes: Any) -> None:
        """Profiles with these seconds at batch sizes 8 and 32."""
        for model, seconds in costs.items():
            batches = tuple(
                BatchProfile(batch_size=size, passes=(seconds,) * 5, seconds=seconds, memory_mib=100.0)
                for size in (8, 32)
            )
            values = {
                "model": model,
                "model_sha256": library.model(model).files["model.onnx"].sha256,
                "device_type": DEVICE,
                "engine": "onnxruntime",
                "engine_version": "1.0",
                "cores": 1,
                "load_seconds": 0.1,
                "batches": batches,
            }
            library.write_profile(Profile(**{**values, **changes}))

    def documents(self, sources: Sequence[str], budgets: Sequence[dict[str, Any]], **spec: Any) -> Documents:
        """The file with one selection, parsed."""
        content = {
            "apiVersion": "ensemble-operator.io/v1alpha1",
            "kind": "EnsembleSelection",
            "metadata": {"name": "pick"},
            "spec": {
                "sources": [{"storage": {"path": source}} for source in sources],
                "budgets": list(budgets),
                "keepTopPercent": 100,
                **spec,
            },
        }
        self.file.write_text(yaml.safe_dump(content))
        return load_documents(self.file)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)
