from __future__ import annotations

import io
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from ensemble_core.allocation.plan import Plan
from ensemble_core.serving import exposition, live
from ensemble_core.serving.errors import ServingError, SilentError
from ensemble_core.serving.live import Live, Screen
from ensemble_core.serving.states import State
from ensemble_core.serving.view import View

ROOT = Path(__file__).parents[3]
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na 1\n"
BROKEN = {
    "within the answer": (b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\na 1\n", "no metrics: IncompleteRead"),
    "before the answer": (b"", "no metrics: Remote end closed"),
    "no HTTP": (b"hello\r\n\r\n", "no metrics: hello"),
    "refused": (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "no metrics: 503 Busy"),
    "no text": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\xff", "no metrics: 'utf-8' codec"),
}


@contextmanager
def endpoint(*answers: bytes) -> Iterator[int]:
    """The port of a server that answers so, one connection each; it repeats the last answer."""
    left = list(answers)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(left.pop(0) if len(left) > 1 else left[0])

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_the_proxy_that_others_are_reached_by_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na 2\n") as proxy, endpoint(WHOLE) as port:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert exposition.read(f"127.0.0.1:{port}", 7.0) == exposition.Snapshot(7.0, {"a": {(): 1.0}})


@pytest.mark.parametrize(("answer", "told"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_answer_is_told_with_the_address(answer: bytes, told: str) -> None:
    with endpoint(answer) as port, pytest.raises(ServingError, match=f"^127.0.0.1:{port}: {told}"):
        exposition.read(f"127.0.0.1:{port}", 0.0)


def test_who_listens_and_says_nothing_is_silent_and_who_is_not_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "ASK_SECONDS", 0.05)
    with socket.create_server(
        ("127.0.0.1", 0)
    ) as stopped:  # the kernel takes connections for a process that is stopped
        address = f"127.0.0.1:{stopped.getsockname()[1]}"
        with pytest.raises(SilentError, match=f"^{address}: no metrics within 0.05 s"):
            exposition.read(address, 0.0)
    with pytest.raises(ServingError, match="refused") as gone:
        exposition.read(address, 0.0)
    assert not isinstance(gone.value, SilentError)


@pytest.mark.parametrize("answer", [answer for answer, _ in BROKEN.values()], ids=BROKEN.keys())
def test_looking_goes_on_after_an_answer_that_is_none(
    answer: bytes, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOOK_SECONDS", "WINDOW_SECONDS"):
        monkeypatch.setattr(live, name, 0.01)
    plan, seen = make_plan(), threading.Event()

    def see(view: View) -> None:
        seen.set()

    with endpoint(answer, WHOLE) as port:
        server = SimpleNamespace(
            incidents=[],
            address="127.0.0.1",
            ports=SimpleNamespace(metrics=port),
            states=lambda plan: {plan.model_name(worker): State.READY for worker in plan.workers},
        )
        with Live(server, plan, Screen(io.StringIO()), see):  # type: ignore[arg-type]
            assert seen.wait(30)


def test_both_averaging_backends_tell_what_the_page_explains_and_the_view_reads() -> None:
    def named(path: str, pattern: str) -> set[str]:
        return set(re.findall(pattern, (ROOT / path).read_text()))

    told = named("allocator/triton/averaging/triton/metrics.cc", r'"(ensemble_[a-z_]+)"')
    assert told == named("allocator/triton/averaging/meter.py", r'"(ensemble_[a-z_]+)"')
    assert told == named("docs/serving.md", r"`(ensemble_[a-z]+_[a-z_]+)`")
    assert told >= named("allocator/ensemble_core/serving/view.py", r'"(ensemble_[a-z_]+)"')
