"""The default algorithm: a model proposes, a few benchmarks decide, and what they find corrects the model.

1. Measure the incumbent, if there is one, and the start (worst-fit-decreasing); a pulled incumbent by weights, too.
2. Propose: matrices constructed and annealed on the model, pulled or routed by weights. Measure the most promising one;
   correct interference and memory by what was seen; propose again.
3. Measure the best ones again, in turn. An incumbent stays unless it is beaten beyond the noise, by measurements made
   after those by which its rival was found: the luckiest of several promises too much. Where there is one, all are of
   this run, for those of another were made on another day.

The thesis's section 8.3 sets the problem; `benchmarks/allocation.py` compares with its algorithms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import NamedTuple

import numpy as np

from ensemble_core.allocation.anneal import Effort, anneal, prune
from ensemble_core.allocation.candidate import Benchmark, Candidate, Measured
from ensemble_core.allocation.construct import construct
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.model import Indices, Problem, route, upper_bound
from ensemble_core.allocation.objectives import Objective, keeps_limit
from ensemble_core.allocation.polish import polish
from ensemble_core.allocation.refit import fitted
from ensemble_core.api.ensembledeployment import Routing

MARGIN = 0.10  # of measured memory that stays free …
RISK = 0.03  # … unless the throughput that it costs is more
PROMISE = 0.95  # of the best score so far that a candidate must promise to be measured
LOOKED_AT = 16  # annealed matrices of a view that are routed …
PULLED, ROUTED, POLISHED = 4, 6, 2  # … and of these proposed: the best pulling, the best by shares, those made better
POOL = 20  # proposals that are kept
PROPOSE_EVERY = 4  # benchmarks
CONFIRMATIONS = 4  # benchmarks kept for measuring the best again
CLOSE = 0.93  # of the best score, from which a candidate is measured again
REPEATS = 3  # measurements of a candidate at most, beside the one by which an incumbent's rival was found
DECIDING = 2 * REPEATS - 1  # benchmarks kept where there is an incumbent: of it but the first, and of a rival
NOISE = 0.01  # relative standard deviation of a benchmark, at least
SURE = 3.0  # standard errors by which the incumbent must be beaten …
FAR = 0.15  # … and where benchmarks did not suffice for the repeats, this part of its score …
FAR_SURE = 6.0  # … and so many standard errors
LEAST = 0.005  # share of a member that is worth a worker
SAME_SHARES = 0.02  # largest difference of shares that makes no other candidate
TRIED = 25  # moves of a chain for each batch size of each member on each device, if that is less than usual
WORK = 1.5e9  # array elements that annealing touches at most


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Args:
        best: The candidate chosen.
        score: Mean of its measurements, by the objective.
        expected: The score that the corrected model gives it.
    """

    best: Candidate
    score: float
    expected: float


class Lead(NamedTuple):
    """Of a rival before the incumbent, in parts of the incumbent's score.

    Args:
        gain: By how much it was measured better.
        least: By more than how much it has to be, by the noise.
        repeated: Whether both were measured as often as they are at most.
    """

    gain: float
    least: float
    repeated: bool


@dataclass
class Ledger:
    """Benchmarks made, of as many as there may be."""

    bench: Benchmark
    objective: Objective
    limit: int
    routing: Routing
    incumbent: Candidate | None = None
    made: int = 0
    failed: bool = False  # the last one
    seen: dict[Candidate, list[Measured]] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return self.limit - self.made

    def ask(self, candidate: Candidate) -> None:
        """Measure a candidate; what is compared with an incumbent anew, though another run may have measured it."""
        taken = self.seen.setdefault(candidate, [])
        taken.append(self.bench(candidate, len(taken) + (self.incumbent is not None)))
        self.made += 1
        self.failed = taken[-1].samples_per_second <= 0

    def scores(self, candidate: Candidate) -> list[float]:
        """Of its measurements; of those over the limit alone, if some are."""
        scores = [self.objective.score(measured) for measured in self.seen[candidate]]
        return [score for score in scores if not keeps_limit(score)] or scores

    def score(self, candidate: Candidate) -> float:
        """Mean of its measurements; 0 if one failed, over the limit if one was."""
        scores = self.scores(candidate)
        return float(np.mean(scores)) if min(scores) > 0 else 0.0

    def learnt(self, problem: Problem) -> Problem:
        """The problem as the measurements correct it."""
        return fitted(problem, self.seen, self.objective.saturated)

    def routed(self, problem: Problem, indices: Indices) -> tuple[Candidate, ...]:
        """A matrix in the ways of routing that are allowed."""
        return routed(problem, indices, self.routing)

    def ranked(self) -> list[Candidate]:
        """What could be served, the best first; ties in the order measured."""
        return sorted((c for c in self.seen if self.score(c) > 0), key=lambda c: -self.score(c))


def guided(
    problem: Problem,
    start: Candidate | None,
    incumbent: Candidate | None,
    bench: Benchmark,
    objective: Objective,
    max_benchmarks: int,
    seed: int,
    routing: Routing = "auto",
    enough: float = float("inf"),
) -> Found | None:
    """Search as the module says; none if nothing that was measured could be served.

    Args:
        problem: What profiles tell.
        start: A candidate that is measured in any case, if there is one.
        incumbent: What serves now, or what a user gave: never replaced by what is not better.
        bench: Called at most `max_benchmarks` times.
        objective: What is wanted.
        max_benchmarks: At least 1; 12 are enough as a rule.
        seed: Equal inputs, measurements and seeds give equal benchmarks in equal order.
        routing: The only way in which samples are routed, or `auto` for that which is measured to be better.
        enough: A score from which nothing better is looked for.
    """
    ledger = Ledger(bench, objective, max_benchmarks, routing, incumbent)
    firsts = [incumbent, start]
    if incumbent is not None and incumbent.routing == "pull":
        firsts += ledger.routed(problem, problem.indices(incumbent.matrix))
    for first in dict.fromkeys(firsts):
        if first is not None and ledger.left > 0:
            ledger.ask(first)
    _explore(problem, ledger, seed, enough)
    confirm(ledger)
    best = chosen(ledger)
    if best is None:
        return None
    known = ledger.learnt(problem)
    scale = _calibration(known, ledger, best.shares is None)
    return Found(best, ledger.score(best), objective.expected(known, best) * scale)


def promised(problem: Problem, objective: Objective, routing: Routing, seed: int) -> float:
    """The best score that the model promises before anything is measured; 0 if nothing fits."""
    nothing = Ledger(_refuse, objective, 0, routing)
    pool = proposals(problem, nothing, seed)
    candidates = [
        candidate for indices in pool if problem.fits(indices) for candidate in nothing.routed(problem, indices)
    ]
    return max((objective.expected(problem, candidate) for candidate in candidates), default=0.0)


def _refuse(candidate: Candidate, repeat: int = 0) -> Measured:
    raise AssertionError("nothing is measured here")


def _explore(problem: Problem, ledger: Ledger, seed: int, enough: float) -> None:
    """Measure what promises most, until that is not worth it, or what is left is kept for confirmation.

    Nothing is kept while there is nothing to confirm.
    """
    kept = _kept(ledger)
    pool: list[Indices] = []
    for turn in count():
        best = max(map(ledger.score, ledger.seen), default=0.0)
        if best >= enough or ledger.left <= (kept if keeps_limit(best) else 0):
            return
        known = ledger.learnt(problem)
        due = turn % PROPOSE_EVERY == 0 or ledger.failed
        promising = None if due else _most_promising(known, pool, ledger)
        if promising is None:  # what was proposed is measured, or does not fit by what has been learnt
            pool = _unique(known, filter(known.fits, [*pool, *proposals(known, ledger, seed + turn)]))
            pool = sorted(pool, key=lambda indices: -_promise(known, indices, ledger))[:POOL]
            promising = _most_promising(known, pool, ledger)
        if promising is None:
            return
        ledger.ask(promising)


def _kept(ledger: Ledger) -> int:
    """Benchmarks for confirmation: where those that it takes to be sure of an incumbent are not left, half."""
    if ledger.incumbent in ledger.ranked() and ledger.left > DECIDING:
        return DECIDING
    return min(CONFIRMATIONS, ledger.left // 2)


def proposals(problem: Problem, ledger: Ledger, seed: int) -> list[Indices]:
    """Matrices that the model likes: with the margin of memory, and without where that can be worth it."""
    measured = [problem.indices(candidate.matrix) for candidate in ledger.ranked()[:2]]
    found: list[Indices] = []
    for view in ledger.objective.views(problem):
        careful = _proposed(replace(view, needs=view.needs * (1 + MARGIN)), measured, seed)
        found += careful
        reached = max((route(view, indices).throughput for indices in careful), default=0.0)
        if reached < (1 - RISK) * upper_bound(view):
            found += _proposed(view, measured, seed)
    return found


def _proposed(problem: Problem, measured: Sequence[Indices], seed: int) -> list[Indices]:
    built = construct(problem)
    starts = [*([] if built is None else [built[0]]), *(each for each in measured if problem.fits(each))]
    if not starts:
        return []
    chains = anneal(problem, starts, effort_for(problem), seed)[:LOOKED_AT]
    routing = sorted([starts[0], *chains], key=lambda each: -route(problem, each).throughput)[:ROUTED]
    better = [polish(problem, indices) for indices in routing[:POLISHED]]
    return [*(prune(problem, indices) for indices in chains[:PULLED]), *routing, *better]


def effort_for(problem: Problem) -> Effort:
    """Little annealing of a small problem, of a large one what time it leaves; none where that is too little."""
    usual = Effort()
    if (enough := TRIED * problem.speeds.size) < usual.moves:
        return Effort(usual.chains, enough)
    step = usual.chains * problem.devices * problem.members**2
    moves = min(usual.moves, int(WORK / step))
    return Effort(usual.chains, moves) if moves >= 50 else Effort(1, 0)


def _unique(problem: Problem, pool: Iterable[Indices]) -> list[Indices]:
    """Each matrix once; of those that differ in the order of like devices alone, one."""
    return list({canonical(problem, indices).tobytes(): canonical(problem, indices) for indices in pool}.values())


def canonical(problem: Problem, indices: Indices) -> Indices:
    """The matrix with the rows of like devices in descending order."""
    ordered = indices.copy()
    keys = [problem.alike(device) for device in range(problem.devices)]
    for key in dict.fromkeys(keys):
        rows = [row for row, own in enumerate(keys) if own == key]
        ordered[rows] = sorted(indices[rows].tolist(), reverse=True)
    return ordered


def _most_promising(problem: Problem, pool: Sequence[Indices], ledger: Ledger) -> Candidate | None:
    """The candidate not yet measured with the best expected score, if that is worth a benchmark."""
    careful = replace(problem, needs=problem.needs * (1 + MARGIN))
    scales = {pull: _calibration(problem, ledger, pull) for pull in (False, True)}
    best, most = None, 0.0
    for indices in filter(problem.fits, pool):
        safe = 1.0 if careful.fits(indices) else 1 - RISK
        for candidate in ledger.routed(problem, indices):
            promise = safe * scales[candidate.shares is None] * ledger.objective.expected(problem, candidate)
            if promise > most and not _known(candidate, ledger):
                best, most = candidate, promise
    ranked = ledger.ranked()
    if not ranked or not keeps_limit(ledger.score(ranked[0])):
        return best
    # What was measured may be above the model by as much as the luckiest so far.
    surprises = [ledger.score(c) / (scales[c.shares is None] * ledger.objective.expected(problem, c)) for c in ranked]
    return best if most * max(1.0, *surprises) >= PROMISE * ledger.score(ranked[0]) else None


def _promise(problem: Problem, indices: Indices, ledger: Ledger) -> float:
    """The best expected score of a matrix however it is routed."""
    return max(ledger.objective.expected(problem, candidate) for candidate in ledger.routed(problem, indices))


def routed(problem: Problem, indices: Indices, routing: Routing = "auto") -> tuple[Candidate, ...]:
    """A matrix by weights, without workers that get nothing, and pulled; the same where no member has two workers."""
    pull = Candidate(problem.matrix(indices))
    if routing == "pull" or not pull.matrix.divided:
        return (pull,)
    rates = route(problem, indices).rates
    lean = np.where(rates > LEAST * rates.sum(axis=0), indices, 0)
    if (lean != indices).any():
        rates = route(problem, lean).rates
    weighted = Candidate.weighted(problem.matrix(lean), rates)
    return (weighted,) if routing == "weights" else (weighted, pull)


def unchanged(problem: Problem, matrix: Matrix, routing: Routing) -> Candidate:
    """A matrix with all its workers, by weights where nothing else is allowed."""
    if routing != "weights" or not matrix.divided:
        return Candidate(matrix)
    return Candidate.weighted(matrix, route(problem, problem.indices(matrix)).rates)


def _known(candidate: Candidate, ledger: Ledger) -> bool:
    """Whether the candidate, or one with almost its shares, was measured."""
    return any(
        other.matrix == candidate.matrix
        and (other.shares is None) == (candidate.shares is None)
        and all(abs(a - b) <= SAME_SHARES for a, b in zip(other.key, candidate.key, strict=True))
        for other in ledger.seen
    )


def _calibration(problem: Problem, ledger: Ledger, pull: bool) -> float:
    """How much more was measured than expected of candidates routed alike, drawn towards the same of all.

    A candidate that keeps a limit by the model alone, or in reality alone, tells nothing of that.
    """
    pairs = [(c.shares is None, ledger.score(c), ledger.objective.expected(problem, c)) for c in ledger.ranked()]
    logs = [
        (kind, np.log(score / expected))
        for kind, score, expected in pairs
        if keeps_limit(score) == keeps_limit(expected)
    ]
    if not logs:
        return 1.0
    everywhere = float(np.mean([log for _, log in logs]))
    own = [log for kind, log in logs if kind == pull]
    return float(np.exp((sum(own) + everywhere) / (len(own) + 1)))


def confirm(ledger: Ledger) -> None:
    """Measure again what can change the choice."""
    while ledger.left > 0 and (candidate := _undecided(ledger)) is not None:
        ledger.ask(candidate)


def _undecided(ledger: Ledger) -> Candidate | None:
    """What to measure again; none if that cannot change the choice, or if all would be refused for their latency."""
    ranked = ledger.ranked()
    if not ranked or not keeps_limit(ledger.score(ranked[0])):
        return None
    if ledger.incumbent is not None and chosen(ledger) == ledger.incumbent:
        return _contested(ledger, ledger.incumbent)
    close = [each for each in ranked[:2] if ledger.score(each) >= CLOSE * ledger.score(ranked[0])]
    rarest = min(close, key=lambda each: len(ledger.seen[each]))
    return rarest if len(close) == 2 and len(ledger.seen[rarest]) < REPEATS else None


def _contested(ledger: Ledger, incumbent: Candidate) -> Candidate | None:
    """The incumbent or a rival, in turn: one rival after the other, in the order of what was first measured of them.

    None if each was measured often enough, or is behind.
    """
    score, times = ledger.score(incumbent), len(ledger.seen[incumbent])
    for rival in sorted(ledger.ranked(), key=lambda each: -ledger.scores(each)[0]):
        again = ledger.scores(rival)[1:]
        hopeless = ledger.score(rival) < CLOSE * score or (bool(again) and float(np.mean(again)) < score)
        if rival != incumbent and not hopeless and min(times, len(again)) < REPEATS:
            return incumbent if times <= len(again) else rival
    return None


def chosen(ledger: Ledger) -> Candidate | None:
    """The best measured, or the incumbent if none is better beyond the noise; none if nothing could be served."""
    ranked, incumbent = ledger.ranked(), ledger.incumbent
    if incumbent is None or incumbent not in ranked:
        return ranked[0] if ranked else None
    return next((each for each in ranked if _beats(ledger, each, incumbent)), incumbent)


def passed_over(
    incumbent: Candidate, seen: Mapping[Candidate, list[Measured]], objective: Objective
) -> tuple[Candidate, Lead] | None:
    """What was measured better than an incumbent that stays for all that, and its lead; none if nothing was."""
    ledger = Ledger(_refuse, objective, 0, "auto", incumbent, seen=dict(seen))
    rivals = [each for each in ledger.ranked() if each != incumbent and keeps_limit(ledger.score(each))]
    leads = [(each, lead) for each in rivals if (lead := _lead(ledger, each, incumbent)).gain > 0]
    return max(leads, key=lambda pair: pair[1].gain, default=None)


def _beats(ledger: Ledger, rival: Candidate, incumbent: Candidate) -> bool:
    """Whether a rival is better beyond the noise."""
    if not (keeps_limit(ledger.score(rival)) and keeps_limit(ledger.score(incumbent))):
        return ledger.score(rival) > ledger.score(incumbent)
    lead = _lead(ledger, rival, incumbent)
    return lead.gain > lead.least


def _lead(ledger: Ledger, rival: Candidate, incumbent: Candidate) -> Lead:
    """The rival's first measurement, which made it one, counts if it is alone."""
    first, *again = ledger.scores(rival)
    counts = [len(ledger.seen[incumbent]), max(1, len(again))]
    error = _noise(ledger) * float(np.sqrt(sum(1 / times for times in counts)))
    repeated = min(counts) >= REPEATS
    least = SURE * error if repeated else max(FAR_SURE * error, FAR)
    return Lead(float(np.mean(again or [first])) / ledger.score(incumbent) - 1, least, repeated)


def _noise(ledger: Ledger) -> float:
    """Relative standard deviation of a benchmark: as those of a candidate differ, or as the windows of each, if more.

    Windows are two: the square of their difference is, in the mean, four times the variance of what both say together.
    """
    squares, free = 0.0, 0
    for candidate in ledger.ranked():
        scores = np.array(ledger.scores(candidate))
        squares += float((((scores - scores.mean()) / scores.mean()) ** 2).sum())
        free += len(scores) - 1
    spreads = [measured.spread for candidate in ledger.ranked() for measured in ledger.seen[candidate]]
    windows = float(np.sqrt(np.mean(np.square(spreads)))) / 2 if spreads else 0.0
    return max(NOISE, float(np.sqrt(squares / free)) if free else 0.0, windows)
