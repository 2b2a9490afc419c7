"""Become Triton on the files of `ensemble render`; its models are loaded by `ensemble agent`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ensemble_core.allocation.machine import in_pod
from ensemble_core.errors import UserError
from ensemble_core.serving import installation, launch, rendered, sharedmemory
from ensemble_core.serving.errors import ServingError
from ensemble_core.serving.installation import Ports
from ensemble_core.serving.process import in_use


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_repository_argument(parser)
    parser.add_argument("--address", required=True, help="what the endpoints listen on, 0.0.0.0 for everything")
    for endpoint in ("http", "grpc", "metrics"):
        parser.add_argument(f"--{endpoint}-port", required=True, type=port, metavar="P")


def add_repository_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repository", required=True, type=Path, metavar="DIR", help="what `ensemble render` wrote")


def port(text: str) -> int:
    """A TCP port, for argparse."""
    number = int(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} must be from 1 to 65535")
    return number


def run(arguments: argparse.Namespace) -> int:
    ports = Ports(arguments.http_port, arguments.grpc_port, arguments.metrics_port)
    rendered.open_to_group()
    folder = arguments.repository.absolute()
    key = rendered.control_key(folder)
    for endpoint, number in zip(("http", "grpc", "metrics"), ports.numbers(), strict=True):
        if in_use(arguments.address, number):
            raise UserError(f"--{endpoint}-port", f"{arguments.address}:{number} cannot be listened on; is it in use?")
    try:
        content, averaging = rendered.prepare(folder, sorted(os.sched_getaffinity(0)), in_pod())
        sharedmemory.sweep_dead()  # of a server that was here before
        # The process stays the same, so the prefix names its owner.
        prefix = sharedmemory.new_prefix()
        server = installation.command(folder, arguments.address, ports, prefix, key, installation.CONTROLLED)
        command = [sys.executable, "-IS", launch.__file__, "-", *server]
        environment = installation.environment()
    except ServingError as error:
        print(f"ensemble server: {error}", file=sys.stderr)
        return 1
    numbers = ", ".join(map(str, ports.numbers()))
    print(f"{content.plan.name}: Triton on {arguments.address}, ports {numbers}; {averaging}", flush=True)
    # Triton in place of this process: signals reach it, it reaps its models' processes, and its end is the container's.
    os.execve(command[0], command, environment)
