"""What the slots of a search did when, from its rungs, failures and exports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ensemble_core.library.library import Library
from ensemble_core.library.records import Export, Failure, Rung
from ensemble_core.library.searches import TrialState


@dataclass(frozen=True)
class Span:
    """Busy time of a slot: one call of one trial, Unix seconds."""

    slot: int
    trial: int
    attempt: int  # of the search; between two of them nobody was there to be busy
    started_at: float
    finished_at: float
    label: str  # "epochs 2-3", "export", "failed: Diverged"


def search_timeline(library: Library, search: str) -> tuple[Span, ...]:
    """All spans that count of a search, by start."""
    spans: list[Span] = []
    for trial, state in library.trials(search).items():
        spans += trial_spans(trial, state)
    return tuple(sorted(spans, key=lambda span: (span.started_at, span.slot)))


def trial_spans(trial: int, state: TrialState) -> list[Span]:
    """The calls that reached a rung, exported or failed."""
    spans, done = [], 0
    for rung in state.rungs:
        epochs = f"epochs {done + 1}-{rung.epoch}" if rung.epoch > done + 1 else f"epoch {rung.epoch}"
        spans.append(span(trial, rung, epochs))
        done = rung.epoch
    if state.export is not None:
        spans.append(span(trial, state.export, "export"))
    if state.failure is not None:
        spans.append(span(trial, state.failure, f"failed: {state.failure.reason}"))
    return spans


def span(trial: int, event: Rung | Failure | Export, label: str) -> Span:
    return Span(event.slot, trial, event.attempt, event.started_at, event.finished_at, label)


def occupancy(spans: Iterable[Span], slots: int) -> float | None:
    """Share of slot-time busy from the first start until the last trial is submitted; none if that is no time at all.

    Each attempt of a search has its own such window and counts by its length.
    """
    attempts: dict[int, list[Span]] = {}
    for one in spans:
        attempts.setdefault(one.attempt, []).append(one)
    windows = [_window(own) for own in attempts.values()]
    length = sum(end - begin for begin, end in windows)
    if length <= 0:
        return None
    busy = sum(_busy(own, window) for own, window in zip(attempts.values(), windows, strict=True))
    return busy / (slots * length)


def _window(spans: Sequence[Span]) -> tuple[float, float]:
    """From the first start to the start of the trial that was started last."""
    starts: dict[int, float] = {}
    for one in spans:
        starts[one.trial] = min(one.started_at, starts.get(one.trial, one.started_at))
    return min(starts.values()), max(starts.values())


def _busy(spans: Iterable[Span], window: tuple[float, float]) -> float:
    begin, end = window
    return sum(max(0.0, min(one.finished_at, end) - max(one.started_at, begin)) for one in spans)
