from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemble_core.api.documents import Documents, load_documents
from ensemble_core.errors import UserError

SAMPLES = Path(__file__).parents[3] / "crds/samples"


@pytest.fixture(scope="session")
def samples() -> dict[str, dict[str, Any]]:
    """The documents of crds/samples by file name without suffix."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(SAMPLES.glob("*.yaml"))}


@pytest.fixture(scope="session")
def changed(samples: dict[str, dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The document that a case of tests/api-cases.yaml means."""

    def merged(document: Any, patch: Any) -> Any:
        if not isinstance(patch, dict):
            return patch
        result = copy.copy(document) if isinstance(document, dict) else {}
        for key, value in patch.items():
            result[key] = merged(result.get(key), value)
        return {key: value for key, value in result.items() if value is not None}

    return lambda case: merged(samples[case["base"]], case["patch"])


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Documents]:
    """Loads text, or documents, from a file `test.yaml`."""

    def load(*contents: Any) -> Documents:
        texts = [c if isinstance(c, str) else yaml.safe_dump(c, allow_unicode=True) for c in contents]
        (tmp_path / "test.yaml").write_text("\n---\n".join(texts))
        return load_documents(tmp_path / "test.yaml")

    return load


@pytest.fixture
def complaints(load: Callable[..., Documents], tmp_path: Path) -> Callable[..., list[str]]:
    """The lines of the UserError that loading must raise, without the file's name."""

    def complaints(*contents: Any) -> list[str]:
        with pytest.raises(UserError) as caught:
            load(*contents)
        prefix = f"{tmp_path / 'test.yaml'}: "
        lines = str(caught.value).splitlines()
        assert all(line.startswith(prefix) for line in lines), lines
        return [line.removeprefix(prefix) for line in lines]

    return complaints
