"""Numbers as options, for argparse."""

from __future__ import annotations

import argparse

MOST_SECONDS = 1_000_000


def port(text: str) -> int:
    """A TCP port."""
    number = int(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} must be from 1 to 65535")
    return number


def seconds(text: str) -> float:
    """How long something may take."""
    number = float(text)
    if not 0 <= number <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to {MOST_SECONDS}")
    return number
