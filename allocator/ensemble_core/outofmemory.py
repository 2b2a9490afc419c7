"""How engines, servers and the kernel say that there was too little memory."""

from __future__ import annotations

import re

# Of CUDA and its libraries, ONNX Runtime, TensorRT, C++, NumPy and Python; and the kernel kills who takes more than
# there is.
WORDS = re.compile(
    r"out.?of.?memory|bad.?alloc|memory.?error|alloc_failed|(cannot|could not|failed to|unable to) (be )?allocate"
    r"|killed by signal 9\b",
    re.IGNORECASE,
)


def lacks_memory(reason: str) -> bool:
    """Whether a failure tells of a lack of memory."""
    return WORDS.search(reason) is not None
