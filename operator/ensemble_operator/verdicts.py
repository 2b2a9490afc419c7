"""The three conditions of the situations that all kinds know."""

from __future__ import annotations

from ensemble_operator import reasons, status
from ensemble_operator.world import Manifest, Verdict

Verdicts = tuple[Verdict, Verdict, Verdict]


def ready(reason: str, message: str, updating: tuple[str, str] | None = None) -> Verdicts:
    """The result is there; `updating` is reason and message of what is under way to replace it."""
    return (
        Verdict("Ready", "True", reason, message),
        Verdict("Progressing", "True", *updating) if updating else Verdict("Progressing", "False", reason, message),
        _fine(),
    )


def progressing(reason: str, message: str, blocked: bool = False) -> Verdicts:
    """Work toward the result goes on; `blocked` if only a person can make it go further."""
    return (
        Verdict("Ready", "False", reason, message),
        Verdict("Progressing", "True", reason, message),
        Verdict("Degraded", "True", reason, message) if blocked else _fine(),
    )


def stopped(reason: str, message: str, degraded: bool) -> Verdicts:
    """Nothing goes on: by the user's wish, or because something is wrong (`degraded`)."""
    return (
        Verdict("Ready", "False", reason, message),
        Verdict("Progressing", "False", reason, message),
        Verdict("Degraded", "True", reason, message) if degraded else _fine(),
    )


def as_before(body: Manifest, reason: str, message: str) -> Verdicts:
    """Nothing can be concluded: Ready stays as it was, and a person must act."""
    ready, progressing, degraded = status.stopped(body, reason, message)
    return ready, progressing, degraded


def _fine() -> Verdict:
    return Verdict("Degraded", "False", reasons.AS_EXPECTED, "")
