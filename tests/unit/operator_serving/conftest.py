from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))


@pytest.fixture
def stage():
    """An EnsembleDeployment of two copies whose selection has a result."""
    from stage import Stage

    return Stage.set()
