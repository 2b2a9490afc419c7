"""What is kept as the reason not to use an engine, and what is an error, for there may be more memory the next time."""

from __future__ import annotations

from typing import Any

import pytest

from ensemble_core.outofmemory import lacks_memory
from ensemble_core.profiling import child
from ensemble_core.profiling.child import Settings, measure

LACKS = [
    MemoryError(),
    RuntimeError("std::bad_alloc"),
    RuntimeError("Failed to allocate memory for requested buffer of size 75497472"),
    RuntimeError("Unable to allocate 1.2 GiB for an array with shape (128, 224, 224, 3)"),
    RuntimeError("CUDA failure 2: out of memory ; GPU=0"),
    RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"),
]
OTHERS = [
    RuntimeError("unsupported allocation of operator Det"),
    RuntimeError("no kernel for the reallocated tensor of MemCpy"),
    ValueError("the allocator of the model is unknown"),
]


def measured(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> dict[str, Any]:
    def fail(*given: Any) -> Any:
        raise failure

    monkeypatch.setattr(child, "_loader", lambda settings, engine: fail)
    return measure(Settings("m.onnx", "uint8", [8, 8, 1], [0], None, [8], "openvino"))


@pytest.mark.parametrize("failure", LACKS, ids=repr)
def test_a_lack_of_memory_is_an_error(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    with pytest.raises(type(failure)):
        measured(monkeypatch, failure)


@pytest.mark.parametrize("failure", OTHERS, ids=repr)
def test_another_failure_is_why_an_engine_is_not_used(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    assert not lacks_memory(str(failure))
    assert measured(monkeypatch, failure)["refused"] == str(failure)
