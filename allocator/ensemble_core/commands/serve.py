"""Serve an allocated ensemble on this machine with Triton, until interrupted (EnsembleDeployment)."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ensemble_core.allocation.harness import NoServerError
from ensemble_core.allocation.plan import Plan
from ensemble_core.allocation.prepare import load_plan
from ensemble_core.allocation.shortage import with_workers
from ensemble_core.api.documents import load_documents
from ensemble_core.api.ensembledeployment import Serving
from ensemble_core.errors import UserError
from ensemble_core.report import CommandError, Report, add_report_arguments, run_reported
from ensemble_core.serving.errors import ServingError
from ensemble_core.serving.installation import Ports
from ensemble_core.serving.live import Live, Screen
from ensemble_core.serving.process import in_use
from ensemble_core.serving.server import TritonServer
from ensemble_core.serving.view import View

ADDRESS = "127.0.0.1"
LOOK_SECONDS = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_report_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    return run_reported(arguments, "serve", lambda report: _serve(arguments, report))


def _serve(arguments: argparse.Namespace, report: Report) -> dict[str, Any]:
    documents = load_documents(arguments.spec)
    deployment = documents.deployment(arguments.name)
    serving = deployment.spec.serving
    check_ports(f"{arguments.spec}: EnsembleDeployment {deployment.metadata.name}", serving)
    stopped, progress, screen = _on_signals(), Progress(report), Screen(sys.stdout)
    try:
        plan = load_plan(documents, deployment)
        progress.say(done=0, total=1, note="starting the server")
        with TritonServer(Ports(serving.http_port, serving.grpc_port, serving.metrics_port), ADDRESS) as server:
            addresses = {name: f"{ADDRESS}:{getattr(server.ports, name)}" for name in ("http", "grpc", "metrics")}
            with Live(server, plan, screen, progress.see), _telling_who_is_short(plan):
                server.apply(plan)
                progress.say(done=1, total=1, note="ready", model=plan.name, **addresses)
                for line in (*how_to_call(plan.name, addresses), server.averaging):
                    screen.say(line)
                while not stopped.wait(LOOK_SECONDS):
                    server.check()
    except (ServingError, NoServerError) as error:
        raise CommandError(str(error)) from error
    return {"digest": None, "summary": {"model": plan.name, **addresses}}


class Progress:
    """What the report tells: a note, and the last view of what the server does."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._values: dict[str, Any] = {}
        self._view: View | None = None

    def say(self, **values: Any) -> None:
        self._values = {"stage": "serving", **values}
        self._report.progress_of(self._content)

    def see(self, view: View) -> None:
        self._view = view
        self._report.progress_of(self._content)

    def _content(self) -> dict[str, Any]:
        return self._values if self._view is None else {**self._values, "summary": self._view.document()}


@contextmanager
def _telling_who_is_short(plan: Plan) -> Iterator[None]:
    """An error tells first which workers ran out of memory, if it is that."""
    try:
        yield
    except ServingError as error:
        raise ServingError(with_workers(str(error), plan)) from error


def check_ports(where: str, serving: Serving) -> None:
    """UserError naming the field if a port is taken."""
    ports = {"httpPort": serving.http_port, "grpcPort": serving.grpc_port, "metricsPort": serving.metrics_port}
    for field, port in ports.items():
        if in_use(ADDRESS, port):
            raise UserError(f"{where}: spec.serving.{field}", f"port {port} of {ADDRESS} is in use; give a free one")


def how_to_call(model: str, addresses: dict[str, str]) -> list[str]:
    """What a user who wants an answer types."""
    return [
        f"{model} is served: gRPC {addresses['grpc']}, HTTP http://{addresses['http']}/v2/models/{model}",
        f"  ensemble predict --url {addresses['grpc']} --model {model} --input X.npy --output Y.npy",
    ]


def _on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set from now on, so that the server is stopped and not abandoned."""
    stopped = threading.Event()
    signal.set_wakeup_fd(-1)  # by which other commands are ended some seconds later: a server takes its time
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    return stopped
