"""What the operator is told by its environment."""

from __future__ import annotations

import math
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
        resync_seconds: Every resource is looked at again after about this time, whatever happens.
        workers: Resources that are looked at concurrently.
        metrics_port: Where Prometheus finds `/metrics`; 0 for nowhere.
        health_port: Where the kubelet finds `/healthz`; 0 for nowhere.
        log_level: debug, info, warning or error.
    """

    trainer_image: str
    core_image: str
    namespaces: tuple[str, ...] = ()
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    resync_seconds: float = 1800.0
    workers: int = 8
    metrics_port: int = 8080
    health_port: int = 8081
    log_level: str = "info"


VARIABLES: Mapping[str, str] = {
    "TRAINER_IMAGE": "image of searches; must be given",
    "CORE_IMAGE": "image of everything else that runs, Triton included; must be given",
    "WATCH_NAMESPACES": "namespaces to watch, separated by spaces or commas; all if empty",
    "IMAGE_PULL_POLICY": "of all pods that are made: Always, IfNotPresent (default) or Never",
    "IMAGE_PULL_SECRETS": "names of secrets for all these pods",
    "RESYNC_SECONDS": "every resource is looked at again after about this time (1800)",
    "WORKERS": "resources that are looked at concurrently (8)",
    "METRICS_PORT": "port of /metrics for Prometheus (8080); 0 for none",
    "HEALTH_PORT": "port of /healthz for the kubelet (8081); 0 for none",
    "LOG_LEVEL": "debug, info (default), warning or error",
}
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_LOG_LEVELS = ("debug", "info", "warning", "error")


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Settings from variables `TRAINER_IMAGE`, `CORE_IMAGE`, `WATCH_NAMESPACES` and so on; UserError that names one."""
    missing = [name for name in ("TRAINER_IMAGE", "CORE_IMAGE") if not environment.get(name)]
    if missing:
        raise UserError(missing[0], "is not set; it names an image")
    return Settings(
        trainer_image=environment["TRAINER_IMAGE"],
        core_image=environment["CORE_IMAGE"],
        namespaces=_words(environment.get("WATCH_NAMESPACES", "")),
        image_pull_policy=_one_of(environment, "IMAGE_PULL_POLICY", _PULL_POLICIES, "IfNotPresent"),
        image_pull_secrets=_words(environment.get("IMAGE_PULL_SECRETS", "")),
        resync_seconds=_positive(environment, "RESYNC_SECONDS", 1800.0),
        workers=_whole(environment, "WORKERS", 8, least=1, most=256),
        metrics_port=_whole(environment, "METRICS_PORT", 8080, least=0, most=65_535),
        health_port=_whole(environment, "HEALTH_PORT", 8081, least=0, most=65_535),
        log_level=_one_of(environment, "LOG_LEVEL", _LOG_LEVELS, "info"),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.replace(",", " ").split() if word)


def _one_of(environment: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str) -> str:
    text = environment.get(name) or default
    if text not in allowed:
        raise UserError(name, f"{text!r} must be one of {', '.join(allowed)}")
    return text


def _whole(environment: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = environment.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise UserError(name, f"{text!r} must be a whole number between {least} and {most}")
    return int(text)


def _positive(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise UserError(name, f"{text!r} must be a positive number")
    return value
