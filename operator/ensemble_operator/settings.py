"""What the operator is told by its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ensemble_core.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Constant while the operator runs.

    Args:
        trainer_image: Runs `train` and `library delete`; has Ray.
        core_image: Runs `profile`, `select`, `allocate`, `render`, `agent`, and serves.
        namespaces: Those that are watched; empty means all.
        image_pull_policy: Of all pods that the operator makes.
        image_pull_secrets: Names added to all these pods.
        resync_seconds: Every resource is looked at again after this time, whatever happens.
        workers: Resources that are looked at concurrently.
    """

    trainer_image: str
    core_image: str
    namespaces: tuple[str, ...] = ()
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    resync_seconds: float = 300.0
    workers: int = 8


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Settings from variables `TRAINER_IMAGE`, `CORE_IMAGE`, `WATCH_NAMESPACES` and so on; UserError that names one."""
    missing = [name for name in ("TRAINER_IMAGE", "CORE_IMAGE") if not environment.get(name)]
    if missing:
        raise UserError(missing[0], "is not set; it names an image")
    return Settings(
        trainer_image=environment["TRAINER_IMAGE"],
        core_image=environment["CORE_IMAGE"],
        namespaces=_words(environment.get("WATCH_NAMESPACES", "")),
        image_pull_policy=environment.get("IMAGE_PULL_POLICY", "IfNotPresent"),
        image_pull_secrets=_words(environment.get("IMAGE_PULL_SECRETS", "")),
        resync_seconds=_positive(environment, "RESYNC_SECONDS", 300.0),
        workers=int(_positive(environment, "WORKERS", 8)),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.replace(",", " ").split() if word)


def _positive(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if value <= 0:
        raise UserError(name, f"{text!r} must be a positive number")
    return value
