"""Numbers and comparisons in words, the same in the terminal and on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard

from ensemble_core.runner.facts import EnsembleFacts, RunFacts

UNKNOWN = "–"
THIN = "\u202f"  # narrow no-break space: between thousands, and before a unit
SHORT = 14  # characters of a model's name where room is scarce
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_UNITS = {
    "inferenceTimeSeconds": "s",
    "memoryMiB": "MiB",
    "parametersMillions": "M parameters",
}


def number(value: float | None) -> str:
    """Three significant digits: 0.0341, 1.23, 45.6, 12 300, 3.1×10⁻⁸; a dash for none, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    exponent = math.floor(math.log10(abs(rounded)))
    if exponent < -4 or exponent > 8:
        mantissa, power = f"{rounded:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}×10{str(int(power)).translate(_SUPERSCRIPTS)}".replace("-", "−", 1)
    text = f"{rounded:,.{max(0, 2 - exponent)}f}".replace(",", THIN)
    return text.replace("-", "−", 1)


def known(value: float | None) -> TypeGuard[float]:
    """Whether a measured amount is there: finite and above 0, so that a logarithmic axis can show it."""
    return value is not None and math.isfinite(value) and value > 0


def counted(count: int, noun: str) -> str:
    """1 model, 32 models."""
    return f"{whole(count)} {noun}{'s' * (count != 1)}"


def given(value: float) -> str:
    """A number that a person chose, or a tick, as it would be written: 0.1, 2, 12 300."""
    if not math.isfinite(value):
        return UNKNOWN
    exact = f"{value:.6g}"
    return number(value) if "e" in exact else f"{float(exact):,.10f}".rstrip("0").rstrip(".").replace(",", THIN)


def whole(value: int | None) -> str:
    """An exact count: 12 345."""
    return UNKNOWN if value is None else f"{value:,}".replace(",", THIN)


def percent(share: float | None) -> str:
    """A share as percent with two decimals, without the sign: 2.67."""
    return UNKNOWN if share is None or not math.isfinite(share) else f"{100 * share:.2f}"


def duration(seconds: float) -> str:
    """45 s, 5 min 12 s, 3 h 05 min, 2 d 4 h."""
    if not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 59.5:
        return f"{given(round(seconds, 1 if seconds < 10 else 0))}{THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{THIN}min" + (f" {rest}{THIN}s" if rest else "")
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}{THIN}h {minutes:02d}{THIN}min"
    return f"{hours // 24}{THIN}d {hours % 24}{THIN}h"


def limits(budget: dict[str, float] | None) -> str:
    """A budget's limits with their units; time is for 2000 samples."""
    parts = (f"{given(limit)}{THIN}{_UNITS.get(name, name)}" for name, limit in (budget or {}).items())
    return ", ".join(parts)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names without what they have in common up to a hyphen, cut to a few characters where they stay distinct."""
    distinct = sorted(set(names))
    common = re.sub(r"[^-]*$", "", _common(distinct[0], distinct[-1])) if len(distinct) > 1 else ""
    rest = {name: name[len(common) :] or name for name in distinct}
    cut = {name: _cut(text) for name, text in rest.items()}
    return cut if len(set(cut.values())) == len(cut) else rest


def _common(first: str, last: str) -> str:
    """The beginning that two texts share; of the first and last of sorted texts, what all share."""
    same = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same]


def _cut(text: str) -> str:
    return text if len(text) <= SHORT else f"{text[: SHORT // 2]}…{text[-(SHORT // 2 - 1) :]}"


@dataclass(frozen=True)
class Verdict:
    """An ensemble against the best single model on held-out data.

    Args:
        outcome: `better` or `worse` in both error and cross-entropy, or in one with the other equal; `mixed`; `equal`.
        text: Which of the two is better or worse, where that needs saying.
    """

    outcome: Literal["better", "worse", "mixed", "equal"]
    text: str


def verdict(ensemble: EnsembleFacts, best: EnsembleFacts) -> Verdict | None:
    """Who wins on held-out data; none where either has no held-out metrics."""
    if ensemble.heldout is None or best.heldout is None:
        return None
    signs = (
        _sign(ensemble.heldout.error - best.heldout.error),
        _sign(ensemble.heldout.cross_entropy - best.heldout.cross_entropy),
    )
    if signs == (0, 0):
        return Verdict("equal", "equal")
    if signs in ((-1, 1), (1, -1)):
        words = {-1: "better", 1: "worse"}
        return Verdict("mixed", f"error {words[signs[0]]}, cross-entropy {words[signs[1]]}")
    outcome: Literal["better", "worse"] = "better" if sum(signs) < 0 else "worse"
    if 0 in signs:
        which, other = ("error", "cross-entropy") if signs[1] == 0 else ("cross-entropy", "error")
        return Verdict(outcome, f"{which} {outcome}, {other} equal")
    return Verdict(outcome, outcome)


def _sign(difference: float) -> int:
    return (difference > 1e-12) - (difference < -1e-12)


def headline_ensemble(facts: RunFacts) -> EnsembleFacts | None:
    """The ensemble that is served, else that of the last budget that has one."""
    there = [ensemble for ensemble in facts.ensembles if ensemble.heldout is not None]
    deployed = [ensemble for ensemble in there if ensemble.deployed]
    return deployed[0] if deployed else there[-1] if there else None
