"""Seeds for each purpose, made out of the specification's one."""

from __future__ import annotations

import hashlib


def hashed(*parts: object, bits: int = 63) -> int:
    """A number of so many bits, at most 64, that depends on nothing but the parts' printed form."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> (64 - bits)
