"""SMOBF: greedy ensemble selection under budgets, on arrays alone.

Source: Pochelu, Petiton, Conche 2022, section 2.1, equation 2; the greedy step is Caruana et al. 2004, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_core.metrics import CLIP

Floats = NDArray[np.float64]
TrueClass = NDArray[np.float32]
Members = tuple[int, ...]

_TINY = 1e-9  # four factors of at least this size make a product that float32 still holds as a normal number
_HALF_ULP = 2.0**-24  # relative rounding error of one float32 operation
_BLOCK_BYTES = 1 << 21  # of float32 work space: about a core's second-level cache
_SLACK = 1e-12  # far above float64 rounding of a score, far below the screening's error


@dataclass(frozen=True)
class Settings:
    """How SMOBF runs.

    Args:
        weights: Weights w of cost against cross-entropy, in [0, 1]; one run for each.
        keep_top_percent: Share of the models that takes part, lowest cross-entropy first, in percent.
        keep_at_least: Models that take part at least.
    """

    weights: tuple[float, ...] = (0.1, 0.01, 0.001)
    keep_top_percent: float = 20
    keep_at_least: int = 20


@dataclass(frozen=True)
class Step:
    """One greedy addition.

    Args:
        row: The model that was added.
        score: (1-w)·E + w·C/B of the ensemble with it.
        cross_entropy: E, its validation cross-entropy in nats.
        cost_ratio: C/B, the largest over the budget's limits.
    """

    row: int
    score: float
    cross_entropy: float
    cost_ratio: float


@dataclass(frozen=True)
class Path:
    """The additions of one run, in order."""

    weight: float
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Pick:
    """What one budget gets.

    Args:
        members: Rows in the order in which they were added; empty if no model is affordable.
        weight: The w whose run won; none without members.
        kept: Rows that took part after pruning, ascending.
        paths: One for each w, in the order of the weights.
    """

    members: Members
    weight: float | None
    kept: Members
    paths: tuple[Path, ...]


@dataclass
class Extensions:
    """The cross-entropies of one ensemble extended by each model.

    Args:
        screened: Of all models, shape (M,), each within `tolerance` of the exact value.
        exact: Float64 values of those that were asked for, by row.
    """

    screened: Floats
    tolerance: float
    exact: dict[int, float] = field(default_factory=dict)


def cross_entropies(true_class: TrueClass) -> Floats:
    """Exact cross-entropy in nats of each model alone, shape (M,), from true-class probabilities (M, N)."""
    return np.array([_cross_entropy(row.astype(np.float64)) for row in true_class])


def _cross_entropy(true_class: Floats) -> float:
    return -float(np.log(np.maximum(true_class, CLIP)).mean())


class Kernel:
    """Cross-entropies of an ensemble extended by every model at once.

    Averaging needs the probability of the true class alone, so M candidates cost O(M·N) and never touch (M, N, C).
    All candidates are screened in float32, with one logarithm for the product of four samples; what lies too close to
    the best to be told apart is evaluated again in float64. Results are kept by member set: they depend neither on
    w nor on the budget. Sums run over members in ascending order, so a set has one value whatever the path to it.
    """

    def __init__(self, true_class: TrueClass, alone: Floats) -> None:
        """Args:
        true_class: Probabilities of the true class, shape (M, N).
        alone: `cross_entropies` of it: the extensions of the empty ensemble.
        """
        models, self.samples = true_class.shape
        padded = -(-self.samples // 4) * 4
        self._models = np.zeros((models, padded), np.float32)
        self._models[:, : self.samples] = true_class
        empty = Extensions(alone, 0.0, dict(enumerate(alone.tolist())))
        self._known: dict[Members, Extensions] = {(): empty}
        self._sums: tuple[Members, Floats] = ((), np.zeros(self.samples))
        self.screenings = 0  # ensembles whose extensions were computed; the others were remembered

    def extensions(self, members: Members) -> Extensions:
        """Screened cross-entropies of `members` (ascending rows) plus each model; O(M·N), remembered."""
        known = self._known.get(members)
        if known is None:
            self.screenings += 1
            known = self._known[members] = self._screen(self._sum(members), len(members))
        return known

    def exact(self, members: Members, row: int) -> float:
        """Float64 cross-entropy of `members` (ascending rows) plus one model; O(N), remembered."""
        values = self.extensions(members).exact
        if row not in values:
            own = self._models[row, : self.samples]
            values[row] = _cross_entropy((self._sum(members) + own) / (len(members) + 1))
        return values[row]

    def _sum(self, members: Members) -> Floats:
        if self._sums[0] != members:
            total = np.zeros(self.samples)
            for row in members:
                total += self._models[row, : self.samples]
            self._sums = (members, total)
        return self._sums[1]

    def _screen(self, sums: Floats, size: int) -> Extensions:
        """Screen all extensions of `size` ≥ 1 members whose true-class probabilities add up to `sums`.

        Samples to which the members give (almost) nothing would underflow or need the clip: the float32 pass sees
        1 in their place, and their part is added in float64.
        """
        hard = np.flatnonzero(sums < _TINY)
        start = np.ones(self._models.shape[1], np.float32)
        start[: self.samples] = sums
        start[hard] = 1.0
        logs = self._log_sums(start)
        for rows in _blocks(len(logs), len(hard)):
            own = self._models[rows, hard].astype(np.float64)
            clipped = np.maximum(sums[hard] + own, CLIP * (size + 1))
            logs[rows] += (np.log(clipped) - np.log1p(own)).sum(axis=1)
        magnitude = float(np.maximum(np.abs(np.log(start)), np.log1p(start)).mean()) * len(start) / self.samples
        # Rounded: the start, the addition, 3/4 product; then the logarithm, whose float32 version errs by up to 4 ulp.
        return Extensions(math.log(size + 1) - logs / self.samples, _HALF_ULP * (4 + 8 * magnitude))

    def _log_sums(self, start: TrueClass) -> Floats:
        """Σ over samples of log(start + model) for all models, in blocks that stay in the cache, shape (M,)."""
        models, padded = self._models.shape
        columns = min(padded, max(64, _BLOCK_BYTES // (4 * min(models, 64)) // 4 * 4))
        rows = max(1, _BLOCK_BYTES // (4 * columns))
        result = np.zeros(models)
        for left in range(0, padded, columns):
            part = start[left : left + columns]
            quarter = len(part) // 4
            for top in range(0, models, rows):
                block = self._models[top : top + rows, left : left + columns] + part
                half = block[:, : 2 * quarter] * block[:, 2 * quarter :]
                product = half[:, :quarter] * half[:, quarter:]
                result[top : top + rows] += np.log(product, out=product).sum(axis=1, dtype=np.float64)
        return result


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Cut (rows, columns) into row blocks of bounded size; nothing if there are no columns."""
    if columns:
        step = max(1, _BLOCK_BYTES // (8 * columns))
        yield from (slice(top, top + step) for top in range(0, rows, step))


@dataclass(frozen=True)
class _Problem:
    """One budget on the kept models: costs (L, K), limits (L,)."""

    kernel: Kernel
    costs: Floats
    limits: Floats

    def cost_with(self, members: Members) -> Floats:
        """Costs of `members` plus each model, shape (L, K); summed in ascending order as the kernel's sums are."""
        spent = np.zeros(len(self.limits))
        for row in members:
            spent = spent + self.costs[:, row]
        return spent[:, None] + self.costs


def select(true_class: TrueClass, costs: Floats, limits: Floats, settings: Settings) -> tuple[Pick, ...]:
    """Pick an ensemble for each of B budgets.

    For each w: from the empty ensemble (score +∞) add, without replacement, the model with the lowest
    score (1-w)·E + w·C/B among those with which every limit holds; stop when none lowers the score. The run with
    the lowest E wins; equal runs: lower C/B, then the earlier w. With several limits C/B is the largest of the
    ratios, which for one limit is the paper's. Ties of models: lower C/B, then lower row.

    Args:
        true_class: Each model's validation probability of the true class, shape (M, N), rows in the order of ids.
        costs: Cost of each model in each quantity, ≥ 0, shape (L, M).
        limits: Of each budget, > 0, +∞ where it does not limit a quantity, shape (B, L).
        settings: Weights and pruning.

    Returns:
        One pick per budget; a budget's pick does not depend on the other budgets.

    O(M·N) per distinct ensemble on the paths.
    """
    alone = cross_entropies(true_class)
    kernels: dict[Members, Kernel] = {}
    picks = []
    for limit in limits:
        kept = prune(alone, costs, limit, settings)
        if kept not in kernels:
            kernels[kept] = Kernel(true_class[list(kept)], alone[list(kept)])
        picks.append(_pick(_Problem(kernels[kept], costs[:, kept], limit), kept, settings.weights))
    return tuple(picks)


def prune(alone: Floats, costs: Floats, limits: Floats, settings: Settings) -> Members:
    """The rows that take part, ascending: the best by cross-entropy; equal ones: lower C/B, then lower row.

    The paper prunes before it looks at the budget. If that leaves no model that the budget can pay, we prune among
    those that it can: otherwise a library whose best models are dear would have no answer to a small budget.
    """
    ratios, affordable = _against(costs, limits)
    kept = _best(np.arange(len(alone)), alone, ratios, settings)
    if affordable.any() and not affordable[list(kept)].any():
        kept = _best(np.flatnonzero(affordable), alone, ratios, settings)
    return kept


def _best(rows: NDArray[np.intp], alone: Floats, ratios: Floats, settings: Settings) -> Members:
    count = max(math.ceil(len(rows) * settings.keep_top_percent / 100 - 1e-9), settings.keep_at_least)
    order = np.lexsort((rows, ratios[rows], alone[rows]))
    return tuple(sorted(rows[order[:count]].tolist()))


def _against(costs: Floats, limits: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """C/B and whether all limits hold, for costs of shape (L, K); both (K,)."""
    ratios: Floats = (costs / limits[:, None]).max(axis=0)
    affordable: NDArray[np.bool_] = np.all(costs <= limits[:, None], axis=0)
    return ratios, affordable


def _pick(problem: _Problem, kept: Members, weights: Sequence[float]) -> Pick:
    runs = [_run(problem, weight) for weight in weights]
    paths = tuple(
        Path(weight, tuple(Step(kept[s.row], s.score, s.cross_entropy, s.cost_ratio) for s in steps))
        for weight, steps in zip(weights, runs, strict=True)
    )
    done = [path for path in paths if path.steps]
    if not done:
        return Pick((), None, kept, paths)
    winner = min(done, key=lambda path: (path.steps[-1].cross_entropy, path.steps[-1].cost_ratio))
    return Pick(tuple(step.row for step in winner.steps), winner.weight, kept, paths)


def _run(problem: _Problem, weight: float) -> list[Step]:
    """One greedy run. Each step lowers the score while its cost grows: the last ensemble has the lowest E."""
    steps: list[Step] = []
    members: Members = ()
    score = math.inf
    while (step := _best_step(problem, members, weight)) is not None and step.score < score:
        steps.append(step)
        members = tuple(sorted((*members, step.row)))
        score = step.score
    return steps


def _best_step(problem: _Problem, members: Members, weight: float) -> Step | None:
    """The affordable model with the lowest exact score; none if there is no such model."""
    ratios, possible = _against(problem.cost_with(members), problem.limits)
    possible[list(members)] = False
    rows = np.flatnonzero(possible)
    if len(rows) == 0:
        return None
    extensions = problem.kernel.extensions(members)
    screened = (1 - weight) * extensions.screened[rows] + weight * ratios[rows]
    margin = 2 * (1 - weight) * extensions.tolerance + _SLACK
    close = rows[screened <= screened.min() + margin]
    return min((_step(problem, members, weight, row, ratios) for row in close.tolist()), key=_preference)


def _step(problem: _Problem, members: Members, weight: float, row: int, ratios: Floats) -> Step:
    cross_entropy = problem.kernel.exact(members, row)
    ratio = float(ratios[row])
    return Step(row, (1 - weight) * cross_entropy + weight * ratio, cross_entropy, ratio)


def _preference(step: Step) -> tuple[Any, ...]:
    return step.score, step.cost_ratio, step.row
