"""The operator with many resources on a real API server, beside a bare kopf operator with one daemon per resource.

python benchmarks/reconcile.py [--resources 1000] [--window 60]. KUBEBUILDER_ASSETS names the folder of etcd and
kube-apiserver. Resources are searches; the benchmark acts out the pods of their Jobs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.apiserver import operator_bench as bench  # noqa: E402
from tests.apiserver.player import BEGUN, Player  # noqa: E402

from results import table, versions, write_section  # noqa: E402

NAMESPACE = "lab"
SETTLE_SECONDS = 20.0  # between convergence and the idle window
DEADLINE = 600.0
# What keeps state per resource in kopf's own way: it wakes each minute and does nothing.
BARE = """
import asyncio, logging, kopf

@kopf.on.startup()
def quiet(settings, **_):
    settings.posting.enabled = False

@kopf.daemon("ensemble-operator.io", "v1alpha1", "hposearches")
async def watch(stopped, **_):
    while not stopped:
        await stopped.wait(60)

logging.disable(logging.INFO)
kopf.run(standalone=True, clusterwide=True)
"""


@dataclass(frozen=True)
class Figures:
    """Of one process: seconds and requests until all was made and told, MB; then percent of a core, and requests."""

    converged: float
    memory: float
    idle_cpu: float
    requests: int
    idle_writes: int
    idle_requests: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resources", type=int, default=1000)
    parser.add_argument("--window", type=float, default=60.0, help="seconds of idleness that are measured")
    arguments = parser.parse_args()
    count, window = arguments.resources, arguments.window
    rows = [
        row("ours, all suspended", count, ours(count, window, suspend=True)),
        row("ours, all training, each with a Job and its six objects", count, ours(count, window, suspend=False)),
        row("bare kopf, a daemon each that does nothing", count, bare(count, window)),
    ]
    text = (
        f"{count} HPOSearches on a real API server of this machine; idle over {window:g} s. Each line has a server of "
        f"its own. {versions('kopf', 'kubernetes')}.\n\n"
    )
    head = [
        "operator",
        "converged, s",
        "RSS, MB",
        "idle CPU, % of a core",
        "requests/object",
        "idle requests",
        "idle writes",
    ]
    text += table(head, rows)
    print(text)
    write_section("The operator with many resources", "python benchmarks/reconcile.py", text)


def row(title: str, count: int, figures: Figures) -> list[str]:
    return [
        title,
        f"{figures.converged:.0f}",
        f"{figures.memory:.0f}",
        f"{figures.idle_cpu:.2f}",
        f"{figures.requests / count:.1f}",
        str(figures.idle_requests),
        str(figures.idle_writes),
    ]


def ours(count: int, window: float, suspend: bool) -> Figures:
    with resources(count, suspend) as cluster:
        began = time.monotonic()
        bench.START = "import sys; from ensemble_operator.main import main; sys.exit(main([]))"
        with bench.operator(cluster) as operator:
            wanted = 0 if suspend else count
            until(lambda: len(cluster.list("Job", NAMESPACE)) == wanted and all_have_conditions(cluster))
            converged, requests = time.monotonic() - began, len(cluster.audit())
            begin(cluster)
            return measured(cluster, operator.process.pid, converged, requests, window)


def bare(count: int, window: float) -> Figures:
    with resources(count, suspend=True) as cluster:
        cluster.grant("cluster-admin")
        began = time.monotonic()
        environment = {**os.environ, "KUBECONFIG": str(bench.kubeconfig(cluster))}
        with subprocess.Popen([sys.executable, "-c", BARE], env=environment) as process:
            try:
                until(lambda: all(one["metadata"].get("finalizers") for one in cluster.list("HPOSearch", NAMESPACE)))
                return measured(cluster, process.pid, time.monotonic() - began, len(cluster.audit()), window)
            finally:
                process.kill()


@contextmanager
def resources(count: int, suspend: bool) -> Iterator[bench.Cluster]:
    """A new server with searches."""
    with tempfile.TemporaryDirectory() as folder, bench.new_cluster(Path(folder)) as cluster:
        cluster.install_definitions()
        cluster.namespace(NAMESPACE)
        searches = (bench.search(f"search-{index}", suspend=suspend) for index in range(count))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda manifest: cluster.create("HPOSearch", NAMESPACE, manifest), searches))
        yield cluster


def begin(cluster: bench.Cluster) -> None:
    """All Jobs have a pod, which runs and reports; until everybody has been told."""
    player = Player(cluster, NAMESPACE)
    jobs = cluster.list("Job", NAMESPACE)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda job: player.begin(job, stage="train", done=3, total=24, summary=BEGUN), jobs))
    until(lambda: [reason(one) for one in cluster.list("HPOSearch", NAMESPACE)].count("Training") == len(jobs))


def reason(resource: dict[str, Any]) -> str:
    """Why it is in progress."""
    conditions = resource.get("status", {}).get("conditions", ())
    return next((str(one["reason"]) for one in conditions if one["type"] == "Progressing"), "")


def all_have_conditions(cluster: bench.Cluster) -> bool:
    return all(one.get("status", {}).get("conditions") for one in cluster.list("HPOSearch", NAMESPACE))


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not reached():
        if time.monotonic() > deadline:
            raise SystemExit(f"not converged within {DEADLINE:g} s")
        time.sleep(1)


def measured(cluster: bench.Cluster, pid: int, converged: float, requests: int, window: float) -> Figures:
    time.sleep(SETTLE_SECONDS)
    cpu, audited, written = cpu_seconds(pid), len(cluster.audit()), len(cluster.writes())
    began = time.monotonic()
    time.sleep(window)
    share = (cpu_seconds(pid) - cpu) / (time.monotonic() - began)
    idle = len(cluster.audit()) - audited
    return Figures(converged, rss_mb(pid), 100 * share, requests, len(cluster.writes()) - written, idle)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
