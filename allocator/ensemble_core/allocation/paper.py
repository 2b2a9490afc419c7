"""A server on paper: devices that are not here, members by their profiles, benchmarks simulated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ensemble_core.allocation.calibrated import BATCH_SIZES, DEVICE_TYPES, ENSEMBLES, NETWORKS, curve, pace
from ensemble_core.allocation.candidate import ROUTING, Candidate
from ensemble_core.allocation.engines import Figures
from ensemble_core.allocation.fewest import fewest_devices
from ensemble_core.allocation.guided import guided
from ensemble_core.allocation.load import saturation
from ensemble_core.allocation.memory import Curve, Memory
from ensemble_core.allocation.model import DeviceKind, Problem, upper_bound
from ensemble_core.allocation.objectives import Throughput, truth_of
from ensemble_core.allocation.simulator import Simulator
from ensemble_core.allocation.speeds import BatchTimes, Speeds, problem_of
from ensemble_core.api.ensembledeployment import Device, Routing
from ensemble_core.api.options import check_option
from ensemble_core.errors import UserError

MOST_DEVICES = 1024
LONGEST = 12  # digits of a number that can be meant


@dataclass(frozen=True)
class Group:
    """Like devices."""

    count: int
    kind: str
    side: DeviceKind
    memory_mib: float


@dataclass(frozen=True)
class Case:
    """What is planned.

    Args:
        members: Their names.
        groups: The devices, GPUs first.
        problem: The same for the model.
        routing: The only way in which samples are routed, or `auto`.
        segment: Samples of a segment.
    """

    members: tuple[str, ...]
    groups: tuple[Group, ...]
    problem: Problem
    routing: Routing = "auto"
    segment: int = 128

    @property
    def names(self) -> tuple[str, ...]:
        """`gpu0`, …, `cpu0`, … for the rows of the matrix."""
        count = {"gpu": 0, "cpu": 0}
        found = []
        for side in self.problem.sides:
            found.append(f"{side}{count[side]}")
            count[side] += 1
        return tuple(found)


@dataclass(frozen=True)
class Planned:
    """What came of it: a candidate, its samples/s simulated, and the bound; how many benchmarks were simulated."""

    candidate: Candidate
    throughput: float
    bound: float
    benchmarks: int


def parse_devices(text: str) -> tuple[Group, ...]:
    """Groups from `16xV100-16GB,1xCPU` or `4xcpu-model-2c:8192`, the number after the colon being MiB of each.

    UserError if a group cannot be read, no memory is known of its type, a memory is none that a specification may
    have, or there are too many.
    """
    groups: list[Group] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)x([A-Za-z0-9][-A-Za-z0-9_.]*)(?::(\d+))?", part.strip())
        if found is None or len(found[1]) > LONGEST or int(found[1]) < 1:
            raise UserError("--devices", f"{part!r} must be a number of devices and their type, such as 16xV100-16GB")
        if (count := int(found[1]) + sum(group.count for group in groups)) > MOST_DEVICES:
            raise UserError("--devices", f"{part.strip()} makes {count} devices, more than the limit of {MOST_DEVICES}")
        if found[3]:
            check_option(f"--devices: {part.strip()}", Device, "memory_mib", int(found[3][:LONGEST]), found[3])
        kind = next((name for name in DEVICE_TYPES if name.lower() == found[2].lower()), found[2])
        known = DEVICE_TYPES.get(kind)
        if known is None and found[3] is None:
            problem = f"{kind} is none of {', '.join(DEVICE_TYPES)}; with --spec it is a device type of profiles"
            raise UserError("--devices", f"{problem}, and needs its memory in MiB: {part.strip()}:16384")
        side: DeviceKind = known.side if known else "cpu" if kind.startswith("cpu") else "gpu"
        memory = float(found[3]) if found[3] else known.memory_mib if known else 0.0
        groups.append(Group(int(found[1]), kind, side, memory))
    return tuple(sorted(groups, key=lambda group: group.side != "gpu"))


def calibrated_case(ensemble: str, groups: Sequence[Group]) -> Case:
    """An ensemble of the thesis on the devices that there are figures for.

    UserError if there are none for an ensemble or device.
    """
    if ensemble not in ENSEMBLES:
        raise UserError("--ensemble", f"{ensemble} is none of {', '.join(ENSEMBLES)}")
    for group in groups:
        if group.kind not in DEVICE_TYPES:
            known = ", ".join(DEVICE_TYPES)
            raise UserError(
                "--devices", f"{group.kind} is none of {known}; with --spec it is a device type of profiles"
            )
    members = ENSEMBLES[ensemble]
    types = {group.kind: DEVICE_TYPES[group.kind] for group in groups}
    times = tuple({kind: pace(NETWORKS[name], of) for kind, of in types.items()} for name in members)
    curves = tuple(dict.fromkeys(types, curve(NETWORKS[name])) for name in members)
    return _case(members, groups, times, curves, BATCH_SIZES)


def traced_case(
    members: Sequence[str],
    profiles: Sequence[Mapping[str, Figures]],
    groups: Sequence[Group],
    batch_sizes: Sequence[int],
    routing: Routing = "auto",
    segment: int = 128,
) -> Case:
    """Members as they were profiled, by device type.

    UserError if a member has no profile on a device type.
    """
    for name, own in zip(members, profiles, strict=True):
        for group in groups:
            if group.kind not in own:
                known = ", ".join(sorted(own)) or "none"
                raise UserError("--devices", f"{name} has no profile on {group.kind}, but on {known}")
    times = tuple({kind: figures.times for kind, figures in own.items()} for own in profiles)
    curves = tuple({kind: figures.curve for kind, figures in own.items()} for own in profiles)
    return replace(_case(members, groups, times, curves, batch_sizes), routing=routing, segment=segment)


def _case(
    members: Sequence[str],
    groups: Sequence[Group],
    times: tuple[Mapping[str, BatchTimes], ...],
    curves: tuple[Mapping[str, Curve], ...],
    batch_sizes: Sequence[int],
) -> Case:
    rows = [group for group in groups for _ in range(group.count)]
    kinds = tuple(row.kind for row in rows)
    memory = Memory(tuple(row.memory_mib for row in rows), kinds, curves)
    problem = problem_of([row.side for row in rows], batch_sizes, Speeds(kinds, times), memory)
    return Case(tuple(members), tuple(groups), problem)


def plan(case: Case, max_benchmarks: int, seed: int, required: float | None = None) -> Planned:
    """The allocation that the default algorithm finds with simulated benchmarks; on the fewest devices for a rate.

    UserError if the devices cannot hold the members, or cannot give the rate.
    """
    problem = case.problem
    bench = Simulator(truth_of(problem), saturation(problem.devices, case.segment), seed=seed)
    if required is None:
        found = guided(problem, None, None, bench, Throughput(), max_benchmarks, seed, case.routing)
    else:
        found = fewest_devices(problem, required, bench, max_benchmarks, seed, case.routing)
    if found is None:
        raise UserError("--devices", f"cannot hold the members: {_lack(problem, case.members)}")
    if required is not None and found.score < required:
        raise UserError("--required", f"{required:g} samples/s are more than the {found.score:,.0f} found")
    return Planned(found.best, found.score, upper_bound(problem), len(bench.asked))


def _lack(problem: Problem, members: Sequence[str]) -> str:
    least, capacity = problem.needs.min(axis=(0, 2)).sum(), problem.capacity.sum()
    return (
        f"{len(members)} members take {least:,.0f} MiB at the smallest batch sizes, each in one piece; "
        f"the devices have {capacity:,.0f} MiB together"
    )


def lines(case: Case, found: Planned) -> list[str]:
    """The plan as text: what comes of it, and for each device what runs there."""
    matrix, problem = found.candidate.matrix, case.problem
    used = problem.used(problem.indices(matrix))
    rows = [
        (name, f"{used[device]:,.0f} of {problem.capacity[device]:,.0f}", _workers(case, found.candidate, device))
        for device, name in enumerate(case.names)
    ]
    share, count = found.throughput / found.bound, len(case.members)
    devices = ", ".join(f"{group.count} × {group.kind}" for group in case.groups)
    text = [
        f"{count} member{'s' * (count != 1)} on {devices}",
        f"  throughput  {found.throughput:,.0f} samples/s, simulated; {share:.0%} of the bound",
        f"  bound       {found.bound:,.0f} samples/s of all devices",
        f"  devices     {sum(any(row) for row in matrix.batch_sizes)} of {matrix.devices} used",
        f"  routing     {ROUTING[found.candidate.routing]}",
        f"  benchmarks  {found.benchmarks}, simulated",
        "",
    ]
    head = ("device", "memory, MiB", "member@batch size (share of its samples, if it is on several devices)")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(2)]
    return text + [
        f"  {name:<{widths[0]}}  {memory:>{widths[1]}}  {workers}".rstrip() for name, memory, workers in (head, *rows)
    ]


def _workers(case: Case, candidate: Candidate, device: int) -> str:
    return ", ".join(
        f"{case.members[member]}@{size}{candidate.share(device, member)}"
        for member, size in enumerate(candidate.matrix.batch_sizes[device])
        if size
    )
