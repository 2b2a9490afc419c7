"""An installation of Triton that is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble_core.serving import installation


def no_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of Python models end at once, with exit code 127 and words of their own."""
    prepare = installation.prepare_backends

    def without_python(folder: Path) -> None:
        prepare(folder)
        stub = folder / "python" / installation.STUB
        stub.write_text("#!/bin/sh\necho stub: error while loading shared libraries: libpython3.so >&2\nexit 127\n")

    monkeypatch.setattr(installation, "prepare_backends", without_python)
