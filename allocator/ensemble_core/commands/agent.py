"""Keep the models of `ensemble render` loaded in the Triton beside it, until it is ended."""

from __future__ import annotations

import argparse
import os
import signal
import time
from functools import partial

from ensemble_core.commands.numbers import port
from ensemble_core.commands.server import add_repository_argument
from ensemble_core.places import existing_folder
from ensemble_core.report import open_report
from ensemble_core.serving import rendered
from ensemble_core.serving.agent import Agent
from ensemble_core.serving.control import Control
from ensemble_core.serving.installation import CONTROL_HEADER
from ensemble_core.serving.process import LOAD_SECONDS

ADDRESS = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_repository_argument(parser)
    parser.add_argument("--http-port", required=True, type=port, metavar="P", help="of Triton in the same pod")
    parser.add_argument("--report", metavar="TARGET", help="file:PATH or configmap:NAMESPACE/NAME")


def run(arguments: argparse.Namespace) -> int:
    # At once, whatever it waits for, and also as process 1 of a container; there is nothing that it would leave behind.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    rendered.open_to_group()
    folder = existing_folder("--repository", arguments.repository)
    key = {CONTROL_HEADER: rendered.control_key(folder)}
    report = open_report(arguments.report, "agent", rendered.read(folder).spec_hash)
    control = Control(ADDRESS, arguments.http_port, LOAD_SECONDS, key)
    agent = Agent(folder, control, partial(report.progress, stage="serving"))
    while True:
        time.sleep(agent.look())
