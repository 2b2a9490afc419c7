"""Time of selection: ours beside SMOBF and ensemble selection (Caruana 2004) written on full predictions.

Predictions are simulated, of M models on N samples of C
classes; each figure is the best of three runs of ours and one run of the others; nothing here uses more than one
thread. Picks are compared: the command fails if ours differ from the plain ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ensemble_core.metrics import CLIP
from ensemble_core.selection.smobf import Floats, Settings, TrueClass, select
from results import table, versions, write_section

SIZES = ((100, 2000, 100), (300, 2000, 100))
BUDGETS = (20.0, 80.0, 320.0)
WEIGHTS = (0.1, 0.01, 0.001)
CARUANA_STEPS = 50
HEAD = ["M×N×C", "what", "ours, s", "plain, s", "ratio"]
SETTINGS = Settings(WEIGHTS, keep_top_percent=100)

T = TypeVar("T")


def simulate(models: int, samples: int, classes: int, seed: int = 0) -> tuple[TrueClass, NDArray[np.int64], Floats]:
    """Probabilities (M, N, C) float32 with correlated errors, labels (N,), costs (1, M) between 0.4 and 40 s."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, samples)
    signal = random.normal(3.9, 1.9, samples)
    shared = random.normal(0, 0.55, (samples, classes))
    costs = np.clip(np.exp(random.normal(np.log(4), 1, models)), 0.4, 40)
    skill = np.clip(0.8 + 0.07 * np.log(costs / 4) + random.normal(0, 0.09, models), 0.15, 1.05)
    probabilities = np.empty((models, samples, classes), np.float32)
    for model in range(models):
        logits = shared + random.normal(0, random.uniform(0.65, 0.95), (samples, classes))
        logits[np.arange(samples), labels] += skill[model] * signal
        exponents = np.exp(random.uniform(1.6, 4) * (logits - logits.max(axis=1, keepdims=True)))
        probabilities[model] = exponents / exponents.sum(axis=1, keepdims=True)
    return probabilities, labels, costs[None]


def plain_smobf(probabilities: TrueClass, labels: NDArray[np.int64], costs: Floats, budget: float) -> list[list[int]]:
    """Paths of SMOBF on full predictions, one candidate after the other."""
    return [_plain_run(probabilities, labels, costs[0], budget, weight) for weight in WEIGHTS]


def _plain_run(
    probabilities: TrueClass, labels: NDArray[np.int64], costs: Floats, budget: float, w: float
) -> list[int]:
    members: list[int] = []
    total, spent, best = np.zeros(probabilities.shape[1:]), 0.0, np.inf
    while True:
        options = []
        for row in set(range(len(costs))) - set(members):
            cost = spent + costs[row]
            if cost <= budget:
                mean = (total + probabilities[row]) / (len(members) + 1)
                score = (1 - w) * _cross_entropy(mean, labels) + w * cost / budget
                options.append((score, cost, row))
        if not options or min(options)[0] >= best:
            return members
        best, spent, row = min(options)
        members.append(row)
        total += probabilities[row]


def caruana(probabilities: TrueClass, labels: NDArray[np.int64]) -> list[int]:
    """Greedy ensemble selection with replacement, without a budget, as AutoML libraries write it."""
    total, members = np.zeros(probabilities.shape[1:]), []
    for size in range(CARUANA_STEPS):
        losses = [_cross_entropy((total + own) / (size + 1), labels) for own in probabilities]
        members.append(int(np.argmin(losses)))
        total += probabilities[members[-1]]
    return members


def _cross_entropy(mean: Floats, labels: NDArray[np.int64]) -> float:
    return -float(np.log(np.maximum(mean[np.arange(len(labels)), labels], CLIP)).mean())


def ours(probabilities: TrueClass, labels: NDArray[np.int64], costs: Floats, budgets: tuple[float, ...]) -> Any:
    """The same with the kernel, the gathering of true-class probabilities included."""
    true_class = probabilities[:, np.arange(len(labels)), labels]
    return select(true_class, costs, np.array(budgets)[:, None], SETTINGS)


def timed(call: Callable[[], T], repeats: int) -> tuple[float, T]:
    """Best time in seconds, and the result."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def compare(models: int, samples: int, classes: int) -> Iterator[list[str]]:
    """Rows of the table for one size."""
    library = simulate(models, samples, classes)
    name, total = f"{models}×{samples}×{classes}", 0.0
    for budget in BUDGETS:
        fast, (pick,) = timed(partial(ours, *library, (budget,)), 3)
        slow, paths = timed(partial(plain_smobf, *library, budget), 1)
        total += slow
        if [[step.row for step in path.steps] for path in pick.paths] != paths:
            raise SystemExit(f"{name}, budget {budget:g}: the picks differ")
        yield _row(name, f"SMOBF, budget {budget:g} s, {len(pick.members)} members", fast, slow)
    fast, _ = timed(partial(ours, *library, BUDGETS), 3)
    yield _row(name, "SMOBF, the three budgets in one run", fast, total)
    slow, _ = timed(partial(caruana, *library[:2]), 1)
    yield _row(name, f"three budgets, against {CARUANA_STEPS} steps of Caruana 2004 without budget", fast, slow)


def main() -> None:
    rows = [row for size in SIZES for row in compare(*size)]
    text = f"Simulated predictions; {versions('numpy')}. A run fails if the picks differ.\n\n" + table(HEAD, rows)
    print(text)
    write_section("Selection: SMOBF against plain loops", "python benchmarks/selection.py", text)


def _row(size: str, what: str, fast: float, slow: float) -> list[str]:
    return [size, what, f"{fast:.4f}", f"{slow:.2f}", f"{slow / fast:.0f}"]


if __name__ == "__main__":
    main()
