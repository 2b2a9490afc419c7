"""An ensemble under load while what it is made of is killed, stopped, slowed, unloaded and loaded again."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.support.averaging import SANITIZER, started
from tests.support.soak import (
    DEADLINE,
    DEADLY,
    FAKE_KINDS,
    FRONT,
    FRONT_KINDS,
    GRACE,
    MEMBERS,
    OWNERS,
    QUORUM,
    Course,
    Look,
    Sent,
    kinds_of,
    least_gauge,
    schedule,
    soak,
    waiting,
)

from ensemble_core.serving.sharedmemory import FOLDER

SEED = int(os.environ.get("SOAK_SEED", "1"))
MOST_GROWTH = 64 << 20  # bytes of resident memory in the second half
LATE = 2.0  # seconds after its deadline that a client may have its answer
TOLL = 20.0  # seconds until the server has ended that waits for a process which is dead
SHORTEST_FAULT = 0.5  # seconds
LONGEST_LOOK = 1.0  # seconds that a client may hear of an answer later than the server has counted it


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "seconds", [pytest.param(60, id="short"), pytest.param(600, id="long", marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize("kind", ["native", "python"])
def test_an_ensemble_at_nine_tenths_of_its_capacity_outlives_its_members(
    kind: str, seconds: int, fake: Path, tmp_path: Path
):
    print(f"SOAK_SEED={SEED}")
    with started(kind, fake, tmp_path) as server:
        course = soak(server, SEED, seconds)
        prefix = server.process.control.identity()
    print(told(course))
    assert course.wrong == []
    assert course.forgotten == 0
    assert [*breaches(course)] == []
    assert course.problems == []
    assert [
        window for window in course.windows if window.what == "server" and window.begin > course.middle + TOLL
    ] == []
    assert course.recovered
    assert [*miscounts(course)] == []
    assert max(map(waiting, course.looks)) > 0
    assert course.looks[-1].counters
    assert waiting(course.looks[-1]) == 0
    assert min(map(least_gauge, course.looks)) >= 0
    sizes = [sum(each.regions.values()) for each in course.looks]
    assert max(sizes[len(sizes) // 2 :]) <= 2 * max(sizes[: len(sizes) // 2])
    assert prefix is not None
    assert [path.name for path in FOLDER.glob(f"ensemble-*-{os.getpid()}-*")] == []
    if not SANITIZER:  # which keep what is freed
        assert growth(course.looks) <= MOST_GROWTH


def breaches(course: Course) -> Iterator[str]:
    """Requests that ended otherwise than the contract allows."""
    for sent in course.sent:
        if (why := breach(sent, course)) is not None:
            yield f"{why}: {sent}"


def breach(sent: Sent, course: Course) -> str | None:
    """A member may be missing only if a fault touched it, and a request may fail only if too many are.

    On a machine that does not let the ensemble work, every member may be late; the canary tells when.
    """
    unwell = course.unwell(sent.at, sent.until)
    excused = "server" in unwell or course.canary.disturbed(sent.at, sent.until)
    if sent.until - sent.at > DEADLINE + (GRACE if excused else LATE):
        return "answered too late"
    if sent.outcome == "answered":
        return None if excused or sent.missing <= unwell else "a healthy member is missing"
    if sent.outcome in ("failed", "deadline"):
        named = set(re.findall(r"member (\w+): ", sent.text))
        if len(named) <= len(MEMBERS) - QUORUM:
            return "the error does not name enough members"
        return None if excused or named <= unwell else "a healthy member failed"
    allowed = {"refused": not {FRONT, "server"}.isdisjoint(unwell), "lost": "server" in unwell, "cancelled": True}
    return None if allowed.get(sent.outcome, False) else "no error that may be"


def miscounts(course: Course) -> Iterator[str]:
    """Where the server's counters do not go with what clients saw.

    A load's counters go with it: what ended after they were last read may or may not be in them. They are not read at
    all of a load that comes and goes between two looks.
    """
    last: dict[tuple[int, str], Counter[tuple[str, ...]]] = {}
    blind: list[tuple[float, float]] = []
    for before, after in zip(course.looks, course.looks[1:], strict=False):
        last.update({load: Counter(values) for load, values in before.counters.items()})
        if before.counters.keys() - after.counters.keys() or after.at - before.at > SHORTEST_FAULT:
            blind.append((before.at, after.at + LONGEST_LOOK))
    last.update({load: Counter(values) for load, values in course.looks[-1].counters.items()})
    total = sum(last.values(), Counter[tuple[str, ...]]())

    def of(name: str, *labels: str) -> int:
        return sum(count for key, count in total.items() if key[0] == name and set(labels) <= set(key))

    seen = [each for each in course.sent if not any(begin <= each.until <= end for begin, end in blind)]
    outcomes, certain = (Counter(each.outcome for each in sent) for sent in (course.sent, seen))
    unknown = outcomes["cancelled"] + outcomes["lost"]
    for counted, outcome in (("complete partial", "answered"), ("failed", "failed"), ("deadline", "deadline")):
        found = sum(of("ensemble_requests_total", each) for each in counted.split())
        if not certain[outcome] <= found <= outcomes[outcome] + unknown:
            yield f"{found} requests were {counted}; clients saw {outcomes[outcome]}; {unknown} may be"
    if (found := of("ensemble_requests_total", "cancelled")) > outcomes["cancelled"]:
        yield f"{found} requests were cancelled, {outcomes['cancelled']} by clients"
    answered = sum((each.answered for each in seen), np.zeros(len(MEMBERS), np.int64))
    for member, rows in zip(MEMBERS, answered, strict=True):
        found = of("ensemble_samples_total", member)
        lost = of("ensemble_calls_total", member, "not_finite") * max(MEMBERS[member].workers.values())
        if not rows - lost <= found <= course.samples:
            yield f"{member} answered {found} samples; clients got {rows}, and sent {course.samples}"


def growth(looks: list[Look]) -> float:
    """Bytes that the last server's resident memory has grown by in its second half: of its last fifth and its first."""
    memory = [each.resident for each in looks if each.generation == looks[-1].generation]
    half = memory[len(memory) // 2 :]
    fifth = max(1, len(half) // 5)
    return float(np.median(half[-fifth:]) - np.median(half[:fifth]))


def told(course: Course) -> str:
    outcomes = dict(Counter(each.outcome for each in course.sent))
    partial = sum(bool(each.missing) for each in course.sent if each.outcome == "answered")
    faults = Counter(window.why.split()[0] for window in course.windows)
    looks = course.looks
    return "\n".join(
        [
            *(f"{window.begin - looks[0].at:.1f} s: {window.why}" for window in course.windows),
            f"{course.rate:.0f} samples/s asked for; requests: {outcomes}, of the answered {partial} in part",
            f"faults: {dict(faults)}",
            f"longest: {max(each.until - each.at for each in course.sent):.2f} s",
            f"shared memory: {max(sum(each.regions.values()) for each in looks) >> 10} KiB at most,"
            f" in {max(len(each.regions) for each in looks)} regions",
            f"resident: {looks[0].resident >> 20} MiB, {looks[-1].resident >> 20} in the end,"
            f" {growth(looks) / 2**20:+.1f} in the second half",
            f"the machine was late {sum(late > course.canary.PATIENCE for _, late in course.canary.late)} times",
        ]
    )


def test_the_schedule_has_every_fault_and_never_two_of_one_target():
    faults = schedule(SEED, 600)
    assert faults == schedule(SEED, 600)
    assert {(fault.target, fault.kind) for fault in faults} == {
        *((worker, kind) for worker, member in OWNERS.items() for kind in kinds_of(member)),
        *((FRONT, kind) for kind in FRONT_KINDS),
    }
    assert {*DEADLY} <= {fault.kind for fault in schedule(SEED, 60) if fault.at < 30}
    assert {*FAKE_KINDS} <= {fault.kind for fault in schedule(SEED, 60)}
    assert all(fault.at < 300 for fault in faults if fault.kind in DEADLY)
    for target in {fault.target for fault in faults}:
        times = [(fault.at, fault.at + fault.seconds) for fault in faults if fault.target == target]
        assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(times))
