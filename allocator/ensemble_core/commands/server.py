"""Become Triton on the files of `ensemble render`; its models are loaded by `ensemble agent`."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from ensemble_core.allocation.machine import in_pod
from ensemble_core.commands.numbers import port
from ensemble_core.errors import UserError
from ensemble_core.places import existing_folder
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


def _check(address: str, ports: Mapping[str, int]) -> None:
    """UserError that names the option if this machine has no such address, or a port is taken or given twice."""
    try:
        socket.create_server((address, 0)).close()
    except OSError as error:
        problem = f"{address} is no address of this machine that can be listened on: {error.strerror}"
        raise UserError("--address", problem) from None
    options: dict[int, str] = {}
    for option, number in ports.items():
        if (other := options.setdefault(number, option)) != option:
            raise UserError(option, f"{number} is the port of {other}; give another")
        if in_use(address, number):
            raise UserError(option, f"{address}:{number} cannot be listened on; is it in use?")


def run(arguments: argparse.Namespace) -> int:
    ports = Ports(arguments.http_port, arguments.grpc_port, arguments.metrics_port)
    rendered.open_to_group()
    folder = existing_folder("--repository", arguments.repository)
    key = rendered.control_key(folder)
    _check(arguments.address, dict(zip(("--http-port", "--grpc-port", "--metrics-port"), ports.numbers(), strict=True)))
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
