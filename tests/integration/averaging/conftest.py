from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.averaging import Server, started

from ensemble_core.serving import native


@pytest.fixture(scope="session")
def fake() -> Path:
    """The library of the fake members."""
    return native.library(target=native.FAKE)


@pytest.fixture(scope="module", params=["native", "python"])
def server(request: pytest.FixtureRequest, fake: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(request.param, fake, tmp_path_factory.mktemp(request.param)) as running:
        yield running
