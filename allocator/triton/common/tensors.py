"""NumPy arrays to Triton tensors by DLPack: under NumPy 2 `pb_utils.Tensor(name, array)` silently holds no data."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy.typing as npt
import triton_python_backend_utils as pb

_set_destructor = ctypes.pythonapi.PyCapsule_SetDestructor
_set_destructor.argtypes, _set_destructor.restype = (ctypes.py_object, ctypes.c_void_p), ctypes.c_int


class _Export:
    """An array whose capsule has no destructor.

    Triton takes the memory over and frees it with the tensor, but renames the capsule to a name of its own, so that
    NumPy's destructor would report an error on stderr for every tensor.
    """

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self._array.__dlpack__()
        _set_destructor(capsule, None)
        return capsule


def tensor(name: str, array: npt.NDArray[Any]) -> Any:
    """A Triton tensor of a contiguous, writable array."""
    return pb.Tensor.from_dlpack(name, _Export(array))
