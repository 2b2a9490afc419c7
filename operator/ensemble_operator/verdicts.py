"""The three conditions of the situations that all kinds know (pure)."""

from __future__ import annotations

from ensemble_operator import reasons
from ensemble_operator.status import conditions_of
from ensemble_operator.world import Manifest, Verdict

Verdicts = tuple[Verdict, Verdict, Verdict]


def ready(reason: str, message: str, updating: tuple[str, str] | None = None) -> Verdicts:
    """The result is there; `updating` is reason and message of what is under way to replace it."""
    return (
        Verdict("Ready", "True", reason, message),
        Verdict("Progressing", "True", *updating) if updating else Verdict("Progressing", "False", reason, message),
        fine(),
    )


def progressing(reason: str, message: str, blocked: bool = False) -> Verdicts:
    """Work toward the result goes on; `blocked` if only a person can make it go further."""
    return (
        Verdict("Ready", "False", reason, message),
        Verdict("Progressing", "True", reason, message),
        Verdict("Degraded", "True", reason, message) if blocked else fine(),
    )


def stopped(reason: str, message: str, degraded: bool) -> Verdicts:
    """Nothing goes on: by the user's wish, or because something is wrong (`degraded`)."""
    return (
        Verdict("Ready", "False", reason, message),
        Verdict("Progressing", "False", reason, message),
        Verdict("Degraded", "True", reason, message) if degraded else fine(),
    )


def undecided(body: Manifest, reason: str, message: str) -> Verdicts:
    """Nothing can be concluded: what was ready for this specification stays so, and a person must act."""
    before = next((condition for condition in conditions_of(body) if condition["type"] == "Ready"), None)
    # What was ready for an earlier specification may still be there, but nobody may take it for the present one's.
    stays = before and before["status"] == "True" and before["observedGeneration"] == body["metadata"]["generation"]
    return (
        Verdict("Ready", "True", before["reason"], before["message"])
        if before and stays
        else Verdict("Ready", "False", reason, message),
        Verdict("Progressing", "False", reason, message),
        Verdict("Degraded", "True", reason, message),
    )


def held_up(verdicts: Verdicts, message: str) -> Verdicts:
    """The same, but the work waits for what the message says."""
    ready, before, degraded = verdicts
    told = f"{before.message}; {message}" if before.message else message
    return ready, Verdict("Progressing", "True", before.reason, told), degraded


def degraded(verdicts: Verdicts, reason: str, message: str) -> Verdicts:
    """The same, but Degraded; what is not ready is so for this reason."""
    ready, progressing, _ = verdicts
    return (
        ready if ready.status == "True" else Verdict("Ready", "False", reason, message),
        progressing,
        Verdict("Degraded", "True", reason, message),
    )


def fine() -> Verdict:
    """There is nothing that a person should look at."""
    return Verdict("Degraded", "False", reasons.AS_EXPECTED, "")
