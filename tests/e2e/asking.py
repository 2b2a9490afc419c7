"""Requests that go on while a test does harm: every one of them must be answered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cluster import Manifest, Namespace, until
from tests.e2e.conftest import Images
from tests.e2e.pods import container, pod

HTTP_PORT = 8000
FIRST_SECONDS = 60.0
SCRIPT = Path(__file__).with_name("asker.py")


@dataclass(frozen=True)
class Asking:
    """A pod that asks all the time."""

    namespace: Namespace
    pod: str = "asker"

    def told(self) -> Sequence[Manifest]:
        """What came of each request so far."""
        return [json.loads(line) for line in self.namespace.kubectl("logs", self.pod).splitlines()]

    def answers(self) -> int:
        return sum("answer" in one for one in self.told())

    def wait_answers(self, count: int, seconds: float) -> None:
        """Wait until so many more requests are answered."""
        wanted = self.answers() + count
        until(f"{count} more answers", seconds, lambda: True if self.answers() >= wanted else None)

    def check(self) -> None:
        """AssertionError if a request had no answer, or another one than those before."""
        told = self.told()
        problems = [one for one in told if "answer" not in one]
        assert not problems, f"{len(problems)} of {len(told)} requests had no answer: {problems[:5]}"
        first = told[0]["answer"]
        others = [one for one in told if max(map(abs, differences(first, one["answer"]))) > 1e-5]
        assert not others, f"answers differ: {first} and {others[:2]}"


def differences(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


@contextmanager
def asking(namespace: Namespace, images: Images, model: str = "digits") -> Iterator[Asking]:
    """Ask a served ensemble from its first answer until the end of the block."""
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "asker"},
            "data": {SCRIPT.name: SCRIPT.read_text()},
        },
        _pod(images.core, f"http://{model}.{namespace.name}.svc:{HTTP_PORT}/v2/models/{model}"),
    )
    try:
        asks = Asking(namespace)
        ready = ["wait", "pod/asker", "--for=condition=Ready", f"--timeout={FIRST_SECONDS:g}s"]
        namespace.kubectl(*ready)
        until("the first answer", FIRST_SECONDS, lambda: asks.answers() or None)
        yield asks
    finally:
        namespace.kubectl("delete", "pod/asker", "configmap/asker", "--grace-period=0", "--force")


def _pod(image: str, url: str) -> Manifest:
    command = ["python", f"/script/{SCRIPT.name}", url]
    asks = container("asker", image, [{"name": "script", "mountPath": "/script"}], command=command)
    return pod("asker", [asks], [{"name": "script", "configMap": {"name": "asker"}}])
