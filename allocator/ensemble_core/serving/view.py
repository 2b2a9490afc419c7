"""What a served ensemble does: throughput, latency, queue, and who is busy, from two looks at the server's metrics.

Everything is pure. Requests are told by the counters of the averaging backend, for Triton counts a request of a Python
model as done when it was handed over; how long workers compute is told by Triton.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate

from ensemble_core.allocation.plan import Plan, Worker
from ensemble_core.frozen import Frozen
from ensemble_core.serving.exposition import Between, Snapshot
from ensemble_core.serving.states import State

STEP = 10 ** (1 / 5)  # between the limits by which latencies are counted
ANSWERED = "answered"
QUEUED, ASKED = "ensemble_queued_samples", "ensemble_asked_samples"


class Latency(Frozen):
    """Seconds of the requests that ended; percentiles to about a fifth, for they are counted in steps."""

    mean: float
    p50: float
    p90: float
    p99: float


class Queue(Frozen):
    """Samples at the end of the time."""

    own: int  # that wait, and that nobody else takes
    shared: int  # that wait for whichever worker of the member is free first
    asked: int  # in calls that have not ended: one computes, another may wait in the server for the same worker


class WorkerView(Frozen):
    """A worker; `busy` is the share of the time in which it computed, by calls that ended."""

    model_id: str
    device: str
    batch_size: int
    state: State
    samples_per_second: float
    busy: float
    queue: Queue


class MemberView(Frozen):
    model_id: str
    samples_per_second: float
    calls: int
    failed: int  # of the calls, those whose answer does not count
    queue: Queue  # nobody else's


class DeviceView(Frozen):
    device: str
    busy: float  # of its workers together, 1 at most
    queue: Queue  # of its workers together


class View(Frozen):
    """The ensemble over a stretch of time; latency and wait are of requests that ended, and began, in it."""

    model: str
    seconds: float
    requests_per_second: float
    samples_per_second: float  # answered
    requests: Mapping[str, int]  # that ended, by outcome
    in_flight: int  # at its end
    latency: Latency | None
    wait_seconds: float | None  # until every member had begun with a request
    devices: tuple[DeviceView, ...]
    members: tuple[MemberView, ...]
    workers: tuple[WorkerView, ...]
    cpu: float | None  # busy share of the machine's cores
    gpus: tuple[float, ...]  # busy shares

    @property
    def eventful(self) -> bool:
        """Whether there is anything to tell."""
        return any(self.requests.values()) or self.in_flight > 0 or not self.ready

    @property
    def ready(self) -> bool:
        return all(worker.state is State.READY for worker in self.workers)


def view_of(plan: Plan, states: Mapping[str, State], between: Between) -> View:
    """What happened, and what the workers' states are now."""
    own, seconds = {"model": plan.name}, between.seconds
    outcomes = _by_label(between, "ensemble_requests_total", "outcome", **own)
    latencies = _by_label(between, "ensemble_latency_requests_total", "below_seconds", **own)
    ended, waits = sum(latencies.values()), between.rise("ensemble_wait_requests_total", **own)
    microseconds = between.rise("ensemble_latency_microseconds_total", **own)
    waited = between.rise("ensemble_wait_microseconds_total", **own)
    after = between.after
    received = sum(after.of("ensemble_received_requests_total", **own).values())
    workers = tuple(_worker(plan, worker, states, between) for worker in plan.workers)
    return View(
        model=plan.name,
        seconds=seconds,
        requests_per_second=ended / seconds,
        samples_per_second=between.rise("ensemble_answered_samples_total", **own) / seconds,
        requests={outcome: round(count) for outcome, count in outcomes.items()},
        in_flight=max(0, round(received - sum(after.of("ensemble_latency_requests_total", **own).values()))),
        latency=_latency(latencies, microseconds / 1e6) if ended else None,
        wait_seconds=waited / 1e6 / waits if waits else None,
        devices=tuple(
            _device(device.name, [each for each in workers if each.device == device.name]) for device in plan.devices
        ),
        members=tuple(_member(plan, member.model_id, between) for member in plan.members),
        workers=workers,
        cpu=next(iter(after.of("nv_cpu_utilization").values()), None),
        gpus=tuple(after.of("nv_gpu_utilization").values()),
    )


def _device(name: str, workers: Sequence[WorkerView]) -> DeviceView:
    busy = min(1.0, sum(each.busy for each in workers))
    own, shared, asked = (sum(getattr(each.queue, part) for each in workers) for part in ("own", "shared", "asked"))
    return DeviceView(device=name, busy=busy, queue=Queue(own=own, shared=shared, asked=asked))


def _worker(plan: Plan, worker: Worker, states: Mapping[str, State], between: Between) -> WorkerView:
    name = plan.model_name(worker)
    computed = between.rise("nv_inference_compute_infer_duration_us", model=name) / 1e6
    return WorkerView(
        model_id=plan.members[worker.member].model_id,
        device=worker.device,
        batch_size=worker.batch_size,
        state=states[name],
        samples_per_second=between.rise("ensemble_samples_total", model=plan.name, worker=name) / between.seconds,
        busy=min(1.0, computed / between.seconds),  # a long call may have begun before
        queue=_queue(plan, worker, between.after),
    )


def _queue(plan: Plan, worker: Worker, now: Snapshot) -> Queue:
    own, name = {"model": plan.name}, plan.model_name(worker)
    waiting = now.of(QUEUED, **own, member=plan.members[worker.member].model_id)
    for_it = round(sum(count for labels, count in waiting.items() if dict(labels).get("worker") == name))
    for_any = round(sum(count for labels, count in waiting.items() if "worker" not in dict(labels)))
    asked = round(sum(now.of(ASKED, **own, worker=name).values()))
    if [other.member for other in plan.workers].count(worker.member) == 1:
        return Queue(own=for_it + for_any, shared=0, asked=asked)
    return Queue(own=for_it, shared=for_any, asked=asked)


def _member(plan: Plan, name: str, between: Between) -> MemberView:
    own = {"model": plan.name, "member": name}
    calls = _by_label(between, "ensemble_calls_total", "reason", **own)
    waiting, asked = (round(sum(between.after.of(gauge, **own).values())) for gauge in (QUEUED, ASKED))
    return MemberView(
        model_id=name,
        samples_per_second=between.rise("ensemble_samples_total", **own) / between.seconds,
        calls=round(sum(calls.values())),
        failed=round(sum(count for reason, count in calls.items() if reason != ANSWERED)),
        queue=Queue(own=waiting, shared=0, asked=asked),
    )


def _by_label(between: Between, name: str, label: str, **labels: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for own, rise in between.rises(name, **labels).items():
        key = dict(own).get(label, "")
        found[key] = found.get(key, 0.0) + rise
    return found


def _latency(counts: Mapping[str, float], seconds: float) -> Latency:
    limits = sorted((float(limit), count) for limit, count in counts.items())
    p50, p90, p99 = (percentile(limits, share) for share in (0.5, 0.9, 0.99))
    return Latency(mean=seconds / sum(counts.values()), p50=p50, p90=p90, p99=p99)


def percentile(counts: Sequence[tuple[float, float]], share: float) -> float:
    """What a share of the values is below.

    Args:
        counts: Values below a limit, and not below the one before, by ascending limit; there is at least one value.
        share: In (0, 1].

    Between two limits values are taken to be spread evenly on a logarithmic scale.
    """
    totals = list(accumulate(count for _, count in counts))
    wanted = share * totals[-1]
    index = bisect_left(totals, wanted)
    limit, count = counts[index]
    if math.isinf(limit):
        return counts[index - 1][0]
    return float(limit / STEP ** ((totals[index] - wanted) / count))


def summary_line(view: View) -> str:
    """The view in one line, for logs."""
    busiest = max(view.devices, key=lambda device: device.busy)
    bad = [f"{each.model_id} on {each.device}: {each.state}" for each in view.workers if each.state is not State.READY]
    longest = max(view.members, key=lambda member: member.queue.own)
    queue = [f"{longest.queue.own} samples wait for {longest.model_id}"] if longest.queue.own else []
    parts = [*_traffic(view), *_latencies(view), f"busiest {busiest.device} {busiest.busy:.0%}", *queue, *bad]
    return f"{view.model}: {', '.join(parts)}"


def lines(view: View) -> list[str]:
    """The view as a table, for terminals."""
    machine = [f"CPU {view.cpu:.0%}"] if view.cpu else []
    machine += [f"GPU {' '.join(f'{share:.0%}' for share in view.gpus)}"] if view.gpus else []
    head = [f"{view.model}: {', '.join(_traffic(view))}", f"  {', '.join(_latencies(view))}"]
    rows = [("device", "member", "batch", "state", "samples/s", "busy", "queue", "asked")]
    for device in view.devices:
        rows.append((device.device, "", "", "", "", f"{device.busy:.0%}", *_queued(device.queue)))
        for each in view.workers:
            if each.device == device.device:
                what = (each.model_id, f"{each.batch_size}", each.state, f"{each.samples_per_second:,.0f}")
                rows.append(("", *what, f"{each.busy:.0%}", *_queued(each.queue)))
    members = [("member", "samples/s", "queue", "asked", "calls", "failed")]
    for member in view.members:
        failed = f"{member.failed / member.calls:.1%}" if member.calls else ""
        rate, queue = f"{member.samples_per_second:,.0f}", _queued(member.queue)
        members.append((member.model_id, rate, *queue, f"{member.calls:,}", failed))
    last = [f"  {', '.join(machine)}"] if machine else []
    return [*head, "", *_table(rows, "<<><>>>>"), "", *_table(members, "<>>>>>"), *last]


def _queued(queue: Queue) -> tuple[str, str]:
    """What waits, from what nobody else takes to all that others may leave, and what is asked for."""
    most = queue.own + queue.shared
    return f"{queue.own:,}-{most:,}" if queue.shared else f"{queue.own:,}", f"{queue.asked:,}"


def _traffic(view: View) -> list[str]:
    rates = [f"{view.samples_per_second:,.0f} samples/s", f"{view.requests_per_second:,.1f} requests/s"]
    others = [f"{count} {outcome}" for outcome, count in view.requests.items() if count and outcome != "complete"]
    return [*rates, f"{view.in_flight} in flight", *others]


def _latencies(view: View) -> list[str]:
    if (latency := view.latency) is None:
        return ["no request ended"]
    percentiles = ", ".join(f"p{share} {_text(getattr(latency, f'p{share}'))}" for share in (50, 90, 99))
    waited = [f"waited {_text(view.wait_seconds)} for members"] if view.wait_seconds is not None else []
    return [f"latency {_text(latency.mean)} ({percentiles})", *waited]


def _text(seconds: float) -> str:
    return f"{seconds:,.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _table(rows: Sequence[Sequence[str]], alignments: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(f"{cell:{to}{width}}" for cell, to, width in zip(row, alignments, widths, strict=True)).rstrip()
        for row in rows
    ]
