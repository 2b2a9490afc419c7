"""What averaging costs: requests to an ensemble of fake members, against the same request to one of them.

Members answer zeros at once, so that the difference is what the server does to ask all of them and to average. A run
fails if an answer is not what it should be. `--small` tries everything with small requests, and writes no results.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from tritonclient import grpc

from ensemble_core.library.records import Signature
from ensemble_core.serving import installation
from ensemble_core.serving.client import SharedRequest, connect, shared_request
from ensemble_core.serving.sharedmemory import Region
from fakes import CPP, NATIVE_ENSEMBLE, PYTHON, Design, Fakes, started
from results import table, versions, write_section

DESIGNS = (
    Design("averaging backend in C++", CPP),
    Design("Triton's ensemble, mean in Python", NATIVE_ENSEMBLE),
    Design("averaging backend in Python (BLS)", PYTHON),
    Design("C++, Python members by reference", CPP, by_reference=True),
    Design("Python (BLS), Python members by reference", PYTHON, by_reference=True),
)
OURS, TRITONS = DESIGNS[0].name, DESIGNS[1].name
ONE = "one member"
SHARED, GRPC = "shared memory", "gRPC"
HEADLINE = 12  # members
LEAST, LONG_SECONDS = 3, 6.0  # requests of a design, and how long after these it is asked no more
CLIENTS, COMPARED, DELAY_US = 8, 4, 10_000  # of the throughput: clients, members, and what a call of one takes

Send = Callable[[str], Any]  # asks a model, and returns its answer
Seconds = Mapping[str, Sequence[float]]  # of each repeat, by who was asked


@dataclass(frozen=True)
class Sizes:
    signature: Signature
    images: int  # of a request
    segment: int
    members: tuple[int, ...]
    repeats: Mapping[str, int]  # by way
    windows: int  # of the throughput
    seconds: float  # of a window

    def of_one_image(self) -> Sizes:
        """Requests of one image each, to one member and to the headline's."""
        repeats = {way: 20 * number for way, number in self.repeats.items()}
        return replace(self, images=1, members=(1, min(HEADLINE, max(self.members))), repeats=repeats)


FULL = Sizes(
    Signature(input_type="float32", input_shape=(3, 224, 224), classes=1000),
    images=1024, segment=128, members=(1, 2, 4, 12, 24), repeats={SHARED: 15, GRPC: 5}, windows=7, seconds=3.0,
)  # fmt: skip
SMALL = Sizes(
    Signature(input_type="float32", input_shape=(3, 8, 8), classes=10),
    images=64, segment=16, members=(1, 2), repeats={SHARED: 2, GRPC: 2}, windows=2, seconds=0.2,
)  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """What was measured with so many members.

    Args:
        seconds: Of requests, by way and by name of the design; ONE is a single member, of the same rounds as the
            designs whose members are in C++.
        references: The same of the designs whose members take references.
        copied: Bytes of input copied for a request, by way and name; only what averages by itself tells it.
    """

    seconds: Mapping[str, Seconds]
    references: Mapping[str, Seconds]
    copied: Mapping[tuple[str, str], int]

    def overhead(self, way: str, name: str) -> tuple[float, float]:
        """Milliseconds over one member: of the medians, and of the minima."""
        rounds = self.seconds[way] if name in self.seconds[way] else self.references[way]
        return tuple(1e3 * (best(rounds[name]) - best(rounds[ONE])) for best in (median, min))  # type: ignore[return-value]


def measure_costs(fakes: Fakes, sizes: Sizes, count: int) -> Costs:
    """Ask ensembles of so many members, in every design and on every way."""
    found: list[dict[str, Seconds]] = []
    copied: dict[tuple[str, str], int] = {}
    for by_reference in (False, True):  # one after the other, for many processes beside the server slow it down
        designs = [design for design in DESIGNS if design.by_reference is by_reference]
        with contextlib.ExitStack() as loaded:
            (one,) = loaded.enter_context(fakes.members(1, delay_us=0)) if by_reference else (None,)
            members = loaded.enter_context(fakes.members(count, by_reference))
            models = {ONE: one or members[0]}
            models |= {design.name: loaded.enter_context(fakes.front(design, members)) for design in designs}
            found.append({})
            for way, connected in WAYS.items():
                with connected(fakes.url, sizes) as send:
                    found[-1][way] = rounds(send, models, sizes.repeats[way])
                    averaging = [design.name for design in designs if design.backend != NATIVE_ENSEMBLE]
                    copied |= {(way, name): copied_by(fakes, send, models[name]) for name in averaging}
    in_process, references = found
    return Costs(in_process, references, copied)


def measured(fakes: Fakes, sizes: Sizes) -> Iterator[tuple[int, Costs]]:
    """The costs of each number of members; says where it is."""
    for count in sizes.members:
        print(f"requests of {sizes.images} images, {count} members", flush=True)
        yield count, measure_costs(fakes, sizes, count)


def rounds(send: Send, models: Mapping[str, str], repeats: int) -> dict[str, list[float]]:
    """Seconds of requests to each model, asked in turn so that all meet the same disturbances; fewer of slow ones."""
    for model in models.values():
        send(model)
    found: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            if len(found[name]) >= LEAST and sum(found[name]) > LONG_SECONDS:
                continue
            start = time.perf_counter()
            answer = send(model)
            found[name].append(time.perf_counter() - start)
            check(answer, model)
    return found


def check(answer: Any, model: str) -> None:
    """Every number must be zero, also where something else was before."""
    if np.any(answer):  # NaN is not zero
        raise SystemExit(f"{model}: a wrong answer")
    answer[:] = np.nan


def copied_by(fakes: Fakes, send: Send, model: str) -> int:
    before = fakes.copied(model)
    send(model)
    return fakes.copied(model) - before


@contextlib.contextmanager
def by_shared_memory(url: str, sizes: Sizes) -> Iterator[Send]:
    """Samples and answers lie in shared memory."""
    signature, count = sizes.signature, sizes.images
    size = 4 * count * (int(np.prod(signature.input_shape)) + signature.classes)
    with connect(url) as client, Region(size) as region:
        client.register_system_shared_memory(region.name, f"/{region.name}", region.size)
        SharedRequest(client, region, "", signature, count).samples[:] = 1
        yield lambda model: SharedRequest(client, region, model, signature, count).send(count)
        client.unregister_system_shared_memory(region.name)


@contextlib.contextmanager
def by_grpc(url: str, sizes: Sizes) -> Iterator[Send]:
    """Samples and answers travel in the bodies of requests."""
    samples = np.ones((sizes.images, *sizes.signature.input_shape), np.float32)
    given = grpc.InferInput("INPUT", list(samples.shape), "FP32")
    given.set_data_from_numpy(samples)
    wanted = grpc.InferRequestedOutput("PROBABILITIES")
    with connect(url) as client:
        yield lambda model: client.infer(model, [given], outputs=[wanted]).as_numpy("PROBABILITIES").copy()


WAYS = {SHARED: by_shared_memory, GRPC: by_grpc}


def measure_throughput(fakes: Fakes, sizes: Sizes) -> dict[str, list[float]]:
    """Samples per second that clients get from members that take their time, in windows taken in turn."""
    with contextlib.ExitStack() as loaded:
        members = loaded.enter_context(fakes.members(COMPARED, delay_us=DELAY_US))
        designs = [design for design in DESIGNS if not design.by_reference]
        models = {"members alone": members[0]}
        models |= {design.name: loaded.enter_context(fakes.front(design, members)) for design in designs}
        found: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(sizes.windows):
            for name, model in models.items():
                found[name].append(window(fakes.url, model, sizes))
    return found


def window(url: str, model: str, sizes: Sizes) -> float:
    """Samples per second that clients get who ask for one segment each, again and again."""
    ready, end = threading.Barrier(CLIENTS + 1), threading.Event()

    def ask() -> int:
        with connect(url) as client, shared_request(client, model, sizes.signature, sizes.segment) as request:
            request.samples[:] = 1
            request.send(sizes.segment)
            ready.wait()
            answered = 0
            while not end.is_set():
                check(request.send(sizes.segment), model)
                answered += not end.is_set()
            return answered

    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(ask) for _ in range(CLIENTS)]
        ready.wait(timeout=60)
        start = time.perf_counter()
        time.sleep(sizes.seconds)
        seconds = time.perf_counter() - start
        end.set()
        return sizes.segment * sum(each.result() for each in running) / seconds


def report(
    sizes: Sizes,
    costs: Mapping[int, Costs],
    single: Mapping[int, Costs],
    throughput: Mapping[str, Sequence[float]],
    load: float,
) -> str:
    """The section of the results; `single` are the costs of requests of one image."""
    shape = "×".join(map(str, sizes.signature.input_shape))
    what = (
        f"Fake members that answer zeros at once; images of {shape} float32, {sizes.signature.classes} classes, "
        f"segments of {sizes.segment}. {server_version()}, {versions('numpy', 'tritonclient')}. The machine's "
        f"load was {load:.1f} before."
    )
    return "\n\n".join(
        [
            what,
            *(overhead_part(sizes, costs, way) for way in WAYS),
            *(overhead_part(sizes.of_one_image(), single, way) for way in WAYS),
            copied_part(sizes, costs),
            throughput_part(sizes, throughput),
            headline(costs),
        ]
    )


def overhead_part(sizes: Sizes, costs: Mapping[int, Costs], way: str) -> str:
    rows = [[design.name, *(cell(each, way, design.name) for each in costs.values())] for design in DESIGNS]
    alone = [f"{1e3 * median(each.seconds[way][ONE]):.2f}" for each in costs.values()]
    images = "one image" if sizes.images == 1 else f"{sizes.images} images"
    text = (
        f"Requests of {images} over {way}: milliseconds more than the same request to one fake member in C++, of "
        f"medians of {sizes.repeats[way]} requests that are sent in turn (of the fastest); of {LEAST} at "
        f"least where they take long."
    )
    head = ["members", *map(str, costs)]
    return f"{text}\n\n{table(head, [*rows, [f'{ONE}, total', *alone]])}"


def cell(costs: Costs, way: str, name: str) -> str:
    middle, fastest = costs.overhead(way, name)
    return f"{middle:.2f} ({fastest:.2f})"


def copied_part(sizes: Sizes, costs: Mapping[int, Costs]) -> str:
    whole = 4 * sizes.images * int(np.prod(sizes.signature.input_shape))
    rows = [
        [design.name, way, *(f"{each.copied[way, design.name] / whole:g}" for each in costs.values())]
        for design in DESIGNS
        if design.backend != NATIVE_ENSEMBLE
        for way in WAYS
    ]
    text = (
        "How many times a request's input is copied once it is in the server, from `ensemble_copied_bytes_total`; "
        "Triton's ensemble does not count."
    )
    return f"{text}\n\n{table(['members', 'over', *map(str, costs)], rows)}"


def throughput_part(sizes: Sizes, throughput: Mapping[str, Sequence[float]]) -> str:
    (_, alone), *_ = throughput.items()
    rows = [
        [
            name,
            f"{median(rates):.0f}",
            f"{min(rates):.0f}–{max(rates):.0f}",
            f"{100 * median(rates) / median(alone):.1f}",
        ]
        for name, rates in throughput.items()
    ]
    text = (
        f"{CLIENTS} clients, requests of {sizes.segment} images over shared memory, {COMPARED} fake members that take "
        f"{DELAY_US / 1000:g} ms for a segment; {sizes.windows} windows of {sizes.seconds:g} s each, taken in turn. "
        "There is one instance of what averages; alone, the clients ask one of the members."
    )
    return f"{text}\n\n{table(['', 'images/s', 'windows', '% of members alone'], rows)}"


def headline(costs: Mapping[int, Costs]) -> str:
    count = HEADLINE if HEADLINE in costs else max(costs)
    ours, theirs = (costs[count].overhead(SHARED, name)[0] for name in (OURS, TRITONS))
    ratio = f"{theirs / ours:.0f} times as much" if ours > 0 else "no ratio can be told"
    return (
        f"With {count} members over shared memory the backend in C++ costs {ours:.1f} ms, and Triton's ensemble "
        f"{theirs:.1f} ms: {ratio}."
    )


def server_version() -> str:
    found = installation.find()
    return f"{found.name} {found.version}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="try it with small requests; nothing is written")
    small = parser.parse_args().small
    sizes, load = SMALL if small else FULL, os.getloadavg()[0]
    with started(sizes.signature, sizes.segment) as fakes:
        costs = dict(measured(fakes, sizes))
        one = sizes.of_one_image()
        single = dict(measured(fakes, one))
        throughput = measure_throughput(fakes, sizes)
        text = report(sizes, costs, single, throughput, load)
    print(text)
    if not small:
        write_section("Serving: what averaging costs", "python benchmarks/serving.py", text)


if __name__ == "__main__":
    main()
