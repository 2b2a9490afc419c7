"""What Triton's metrics endpoint tells, and how much its counters rose between two looks."""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ensemble_core.serving.errors import ServingError, SilentError

LINE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
ASK_SECONDS = 5.0

Labels = tuple[tuple[str, str], ...]  # by name


@dataclass(frozen=True)
class Snapshot:
    """The values of all metrics at a moment.

    Args:
        seconds: The moment, by any clock.
        values: By the metric's name, then by labels.
    """

    seconds: float
    values: Mapping[str, Mapping[Labels, float]]

    def of(self, name: str, **labels: str) -> dict[Labels, float]:
        """A metric's values that have these labels."""
        return {own: value for own, value in self.values.get(name, {}).items() if labels.items() <= dict(own).items()}


@dataclass(frozen=True)
class Between:
    """What happened between two looks at one server."""

    before: Snapshot
    after: Snapshot

    @cached_property
    def seconds(self) -> float:
        return self.after.seconds - self.before.seconds

    def rise(self, name: str, **labels: str) -> float:
        """How much the counters that have these labels rose together."""
        return sum(self.rises(name, **labels).values())

    def rises(self, name: str, **labels: str) -> dict[Labels, float]:
        """How much each of them rose; one that is new, or less than it was, began anew at 0."""
        old = self.before.of(name, **labels)
        return {
            own: value - old[own] if own in old and value >= old[own] else value
            for own, value in self.after.of(name, **labels).items()
        }


def parse(text: str, seconds: float) -> Snapshot:
    """A snapshot from Prometheus' text format; lines that are no samples are passed over."""
    values: dict[str, dict[Labels, float]] = {}
    for line in text.splitlines():
        if not line.startswith("#") and (found := LINE.fullmatch(line.strip())) is not None:
            name, labels, value = found.groups()
            values.setdefault(name, {})[tuple(sorted(LABEL.findall(labels or "")))] = float(value)
    return Snapshot(seconds, values)


def read(address: str, seconds: float) -> Snapshot:
    """What the endpoint at HOST:PORT tells now, whatever proxy there is for others; ServingError if it does not.

    SilentError if somebody listens there, and says nothing.
    """
    try:
        return parse(_ask(address).decode(), seconds)
    except TimeoutError as late:
        raise SilentError(f"{address}: no metrics within {ASK_SECONDS:g} s") from late
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ServingError(f"{address}: no metrics: {error}") from error


def _ask(address: str) -> bytes:
    connection = http.client.HTTPConnection(address, timeout=ASK_SECONDS)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise http.client.HTTPException(f"{response.status} {response.reason}")
        return response.read()
    finally:
        connection.close()
