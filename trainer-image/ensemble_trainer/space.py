"""The trainer's hyperparameters: the paper's Table 5 by default, overlaid by `spec.parameters`.

Table 5's "multiplier of filters in the 4 blocks" is read as the filters of the first stage, doubled at each later one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ensemble_core.api.hposearch import Condition, FeasibleSpace, HPOSearchSpec, Parameter
from ensemble_core.errors import UserError

Kind = Literal["real", "integer", "choice"]
TYPES: Mapping[Kind, tuple[str, ...]] = {
    "real": ("double", "discrete"),
    "integer": ("int", "discrete"),
    "choice": ("categorical",),
}


@dataclass(frozen=True)
class Hyperparameter:
    """A parameter's default space, what the trainer can do beyond it, and its value when it does not count."""

    name: str
    kind: Kind
    space: BaseDistribution
    default: str | float | int
    lowest: float = 0.0
    highest: float = math.inf
    choices: tuple[str, ...] = ()


def _real(name: str, low: float, high: float, lowest: float, highest: float, default: float) -> Hyperparameter:
    return Hyperparameter(name, "real", FloatDistribution(low, high), default, lowest, highest)


def _integer(name: str, low: int, high: int, lowest: int, highest: int, default: int) -> Hyperparameter:
    return Hyperparameter(name, "integer", IntDistribution(low, high), default, lowest, highest)


def _choice(name: str, *choices: str, default: str) -> Hyperparameter:
    return Hyperparameter(name, "choice", CategoricalDistribution(choices), default, choices=choices)


# Pochelu et al. 2022, Table 5. A batch of one has no variance to normalise, so batches start at two.
TABLE_5: Mapping[str, Hyperparameter] = {
    p.name: p
    for p in (
        _real("learningRate", 0.001, 0.01, 1e-8, 10.0, default=0.001),
        _integer("batchSize", 8, 48, 2, 65_536, default=32),
        _real("l2", 0.0, 0.1, 0.0, 10.0, default=0.0),
        _choice("convolution", "v1", "v2", "next", default="v1"),
        _choice("activation", "tanh", "relu", "elu", default="relu"),
        _integer("stemFilters", 32, 128, 1, 4096, default=64),
        _integer("stageFilters", 32, 128, 1, 4096, default=64),
        *(_integer(f"blocksStage{i}", 1, 11, 1, 100, default=2) for i in range(1, 5)),
        _real("maxZoom", 0.0, 0.6, 0.0, 0.95, default=0.0),
        _real("maxTranslation", 0.0, 0.6, 0.0, 1.0, default=0.0),
        _real("maxShear", 0.0, 0.3, 0.0, 10.0, default=0.0),
        _real("maxChannelShift", 0.0, 0.3, 0.0, 1.0, default=0.0),
        _integer("maxRotationDegrees", 0, 90, 0, 180, default=0),
    )
}


@dataclass(frozen=True)
class Entry:
    """One parameter of a search: how it is drawn, and when it counts."""

    name: str
    distribution: BaseDistribution
    default: str | float | int
    condition: Condition | None = None

    def counts(self, parameters: Mapping[str, Any]) -> bool:
        """Whether its condition holds beside these values."""
        return self.condition is None or parameters[self.condition.parameter] in self.condition.in_


@dataclass(frozen=True)
class SearchSpace:
    """All parameters of the trainer, each after the one that its condition names."""

    entries: tuple[Entry, ...]

    def distributions(self) -> dict[str, BaseDistribution]:
        """The parameters that always count."""
        return {e.name: e.distribution for e in self.entries if e.condition is None}

    def active(self, parameters: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """The parameters that count beside these values; of a trial's `parameters` these are the proposed ones."""
        return {e.name: e.distribution for e in self.entries if e.counts(parameters)}

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Draw every parameter that counts from Optuna; the others take the trainer's default."""
        parameters: dict[str, Any] = {}
        for entry in self.entries:
            counts = entry.counts(parameters)
            parameters[entry.name] = _suggest(trial, entry.name, entry.distribution) if counts else entry.default
        return parameters


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
    if isinstance(distribution, IntDistribution):
        low, high = distribution.low, distribution.high
        return trial.suggest_int(name, low, high, step=distribution.step, log=distribution.log)
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)


def search_space(spec: HPOSearchSpec) -> SearchSpace:
    """Table 5 with the spaces of `spec.parameters` in place of its own.

    What any trainer would refuse (a list with a range, conditions that lead nowhere) the specification's type has
    refused already.

    Raises:
        UserError: unknown names, types that do not fit, values that this trainer cannot do, spaces that are empty
            beside a default bound. `where` is the path in the document.
    """
    entries = {p.name: Entry(p.name, p.space, p.default) for p in TABLE_5.values()}
    for index, parameter in enumerate(spec.parameters):
        where = f"spec.parameters[{index}]"
        known = TABLE_5.get(parameter.name)
        if known is None:
            close = get_close_matches(parameter.name, TABLE_5, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(f"{where}.name", f"{parameter.name!r} is unknown; {hint}allowed: {', '.join(TABLE_5)}")
        distribution = _distribution(known, parameter, where)
        entries[known.name] = Entry(known.name, distribution, known.default, parameter.condition)
    # A condition names a parameter that has none, so two groups suffice.
    return SearchSpace(tuple(sorted(entries.values(), key=lambda entry: entry.condition is not None)))


def _distribution(known: Hyperparameter, parameter: Parameter, where: str) -> BaseDistribution:
    given, space = parameter.parameter_type, parameter.feasible_space
    if given not in TYPES[known.kind]:
        allowed = " or ".join(TYPES[known.kind])
        raise UserError(f"{where}.parameterType", f"{known.name} is {given!r}; it must be {allowed}")
    where = f"{where}.feasibleSpace"
    if space.list is None:
        return _ranged(known, space, where)
    return CategoricalDistribution(
        tuple(_value(known, value, f"{where}.list[{i}]") for i, value in enumerate(space.list))
    )


def _ranged(known: Hyperparameter, space: FeasibleSpace, where: str) -> BaseDistribution:
    default = known.space
    assert isinstance(default, FloatDistribution | IntDistribution)
    low = _number(known, default.low if space.min is None else space.min, f"{where}.min")
    high = _number(known, default.high if space.max is None else space.max, f"{where}.max")
    if low > high:
        bounds = [
            f"{name} {bound:g}{' (the default)' if given is None else ''}"
            for name, bound, given in (("max", high, space.max), ("min", low, space.min))
        ]
        field = "min" if space.max is None else "max"
        raise UserError(f"{where}.{field}", f"{known.name} has an empty search space: {' is below '.join(bounds)}")
    log = space.distribution == "logUniform"
    if log and low <= 0:
        raise UserError(f"{where}.min", f"logUniform needs a min above 0 for {known.name}, not {low:g}")
    if known.kind == "real":
        return FloatDistribution(low, high, log=log)
    step = space.step or 1
    # Optuna warns about a highest value that the step never reaches.
    return IntDistribution(int(low), int(high - (high - low) % step), log=log, step=step)


def _value(known: Hyperparameter, value: str | float, where: str) -> str | float | int:
    if known.kind != "choice":
        return _number(known, value, where)
    if value not in known.choices:
        raise UserError(where, f"{known.name} cannot be {value!r}; allowed: {', '.join(known.choices)}")
    return value


def _number(known: Hyperparameter, value: str | float, where: str) -> float | int:
    if isinstance(value, str) or not known.lowest <= value <= known.highest:
        allowed = f"a number from {known.lowest:g} to {known.highest:g}"
        raise UserError(where, f"{known.name} cannot be {_shown(value)}; allowed: {allowed}")
    if known.kind == "real":
        return float(value)
    if value != int(value):
        raise UserError(where, f"{known.name} cannot be {_shown(value)}; it must be a whole number")
    return int(value)


def _shown(value: str | float) -> str:
    return repr(value) if isinstance(value, str) else f"{value:g}"
