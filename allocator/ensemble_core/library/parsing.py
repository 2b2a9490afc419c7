"""From stored bytes to checked values; what is wrong is told with the name of the file."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from tokenize import TokenError
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ensemble_core.errors import UserError

M = TypeVar("M", bound=BaseModel)
# What NumPy raises for damaged headers and data.
_DAMAGED = (ValueError, OSError, EOFError, OverflowError, MemoryError, TokenError)


def parse(kind: type[M], data: bytes, where: str) -> M:
    """A JSON file as its type; UserError that lists every wrong field."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise UserError(where, _sentences(error)) from None


def validated(kind: type[M], content: object, where: str) -> M:
    """A JSON value as its type; UserError that lists every wrong field."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UserError(where, _sentences(error)) from None


def _sentences(error: ValidationError) -> str:
    return "; ".join(map(_sentence, error.errors()))


def _sentence(error: ErrorDetails) -> str:
    """Field, value if it is short, and what is allowed."""
    message = re.sub("^(Input|String) should ", "must ", error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message
    field, value = ".".join(map(str, error["loc"])), error["input"]
    if error["type"] == "missing" or not isinstance(value, str | int | float):
        return f"{field}: {message}"
    return f"{field}: {json.dumps(value)[:200]}: {message}"


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """A JSON file that must be an object."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise UserError(where, f"is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(where, "is not a JSON object")
    return content


def load_array(path: Path, where: str) -> NDArray[Any]:
    """A `.npy` file, memory-mapped; UserError if it is truncated, corrupt, pickled or no `.npy`."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        data = path.stat().st_size - array.offset
    except _DAMAGED as error:
        raise UserError(where, f"is no complete .npy file: {error}") from None
    if data != array.nbytes:
        raise UserError(where, f"holds {data} bytes of data where its header says {array.nbytes}")
    return array


def load_array_bytes(data: bytes, where: str) -> NDArray[Any]:
    """The content of a `.npy` file; UserError if it is truncated, corrupt, pickled or no `.npy`."""
    file = io.BytesIO(data)
    try:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except _DAMAGED as error:
        raise UserError(where, f"is no complete .npy file: {error}") from None
    if file.read(1):
        raise UserError(where, "holds more data than its header says")
    return array


def load_probabilities(path: Path, shape: tuple[int, ...], where: str) -> NDArray[np.float32]:
    """Predictions (N, C), float32, memory-mapped; UserError unless every row is a distribution (sum 1 ± 1e-3)."""
    array = load_array(path, where)
    if array.dtype != np.dtype("<f4") or array.shape != shape:
        raise UserError(where, f"is {array.dtype} {array.shape}; it must be float32 {shape}")
    # Not a number fails both comparisons.
    proper = (array >= 0).all(axis=1) & (np.abs(array.sum(axis=1, dtype=np.float64) - 1) <= 1e-3)
    if not proper.all():
        row = int(np.argmin(proper))
        raise UserError(where, f"row {row} is no probability distribution: {array[row, :8].tolist()}")
    return array
