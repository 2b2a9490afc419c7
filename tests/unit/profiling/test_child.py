from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ensemble_core.profiling import child
from ensemble_core.profiling.child import Batch


def rounds(*pairs: tuple[float, list[float]]) -> Iterator[Batch]:
    return iter([Batch(32, passes, 0.0, foreign) for foreign, passes in pairs])


CALM, WILD = [1.0, 1.0, 1.0, 1.0, 1.05], [1.0, 1.0, 1.5, 1.0, 1.2]


@pytest.mark.parametrize(
    ("seen", "expected", "left"),
    [
        ([(0.0, CALM), (0.0, CALM), (0.0, CALM)], (0.0, CALM), 2),
        ([(0.05, WILD), (0.0, CALM), (0.0, CALM)], (0.05, WILD), 2),  # nobody else to blame
        ([(0.5, CALM), (0.0, CALM), (0.0, CALM)], (0.5, CALM), 2),  # disturbed, but it does not show
        ([(0.5, WILD), (0.0, CALM), (0.0, CALM)], (0.0, CALM), 1),
        ([(0.5, WILD), (0.3, WILD), (0.4, WILD), (0.0, CALM)], (0.3, WILD), 1),
    ],
)
def test_disturbed_rounds_are_repeated_and_the_least_disturbed_is_kept(
    monkeypatch: pytest.MonkeyPatch,
    seen: list[tuple[float, list[float]]],
    expected: tuple[float, list[float]],
    left: int,
) -> None:
    source = rounds(*seen)
    monkeypatch.setattr(child, "_round", lambda *_: next(source))
    kept = child._least_disturbed(lambda samples: None, 32, [0])
    assert (kept.foreign_cores, kept.passes) == expected
    assert len(list(source)) == left


@pytest.mark.parametrize("size", [8, 32, 300, 2000, 4096])
def test_every_pass_runs_2000_samples(size: int) -> None:
    seen: list[int] = []
    cores = sorted(os.sched_getaffinity(0))[:1]
    batch = child._least_disturbed(seen.append, size, cores)
    timed = seen[len({size, 2000 % size or size}) :]
    assert len(batch.passes) == child.PASSES
    assert sum(timed) % (2000 * child.PASSES) == 0
    assert sum(timed) >= 2000 * child.PASSES
    assert max(timed) <= size


def test_own_work_is_not_foreign() -> None:
    cores = sorted(os.sched_getaffinity(0))
    busy, own = child._busy_seconds(cores), child._own_seconds()
    assert busy > 0
    assert own > 0
    assert child._peak_mib() > 1
