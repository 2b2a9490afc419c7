"""What a front model is told by its configuration."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from routing import Rule


def within(name: str, text: str | int, least: int, most: int = 10**15) -> int:
    """The number; ValueError if it is outside, or none."""
    try:
        number = int(text)
    except ValueError:
        raise ValueError(f"{name}: '{text}' is no whole number") from None
    if not least <= number <= most:
        raise ValueError(f"{name}: {number} is not from {least} to {most}")
    return number


def positive(name: str, text: str | float) -> float:
    """The number; ValueError unless it is finite and above 0."""
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name}: '{text}' is no number") from None
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: {number} is not above 0 and finite")
    return number


@dataclass(frozen=True)
class Settings:
    """What a front model is told by its configuration; ValueError if it cannot be right."""

    model: str
    members: list[dict[str, Any]]
    weights: list[float]  # their sum is 1
    sample: tuple[int, ...]  # shape of one
    shape: tuple[int, ...]  # of one sample's answer
    rule: Rule
    routing: Any
    segment: int
    quorum: int
    retries: int
    deadline: float  # seconds

    @classmethod
    def parse(cls, config: dict[str, Any]) -> Settings:
        given = {name: value["string_value"] for name, value in config["parameters"].items()}
        members = json.loads(given["workers"])["members"]
        for name, allowed in {
            "rule": ("average", "weighted", "vote"),
            "scores": ("probabilities", "logits"),
            "routing": ("pull", "weights"),
        }.items():
            if given.setdefault(name, {"rule": "weighted"}.get(name, allowed[0])) not in allowed:
                raise ValueError(f"averaging: {name}: '{given[name]}' is none of {', '.join(allowed)}")
        if not members:
            raise ValueError("averaging: workers: there are no members")
        for member in members:
            where = f"averaging: workers: member {member['model']}"
            positive(f"{where}: weight", member["weight"])
            if not member["workers"]:
                raise ValueError(f"{where}: it has no workers")
            for worker in member["workers"]:
                within(f"{where}: batch", worker["batch"], 1)
                positive(f"{where}: share", worker.get("share", 1.0))
        weights = [1.0 if given["rule"] == "average" else float(member["weight"]) for member in members]
        quorum = within("averaging: quorum", given.get("quorum", "0"), 0, len(members))
        return cls(
            model=config["name"],
            members=members,
            weights=[weight / sum(weights) for weight in weights],
            sample=tuple(int(size) for size in config["input"][0]["dims"]),
            shape=tuple(int(size) for size in config["output"][0]["dims"]),
            rule=Rule(given["rule"] == "vote", given["scores"] == "logits"),
            routing=given["routing"],
            segment=within("averaging: segment_size", given.get("segment_size", "128"), 1),
            quorum=quorum or len(members),
            retries=within("averaging: retries", given.get("retries", "0"), 0, 100),
            deadline=positive("averaging: deadline_seconds", given.get("deadline_seconds", "60")),
        )

    @property
    def may_miss(self) -> bool:
        return self.quorum < len(self.members)
