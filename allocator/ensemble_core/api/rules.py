"""Rules between fields, said once: checked here in Python, and by the Kubernetes API server as CEL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from ensemble_core.frozen import Frozen


@dataclass(frozen=True)
class Rule:
    """What must hold among the fields of one object.

    Args:
        field: The field to blame, in camelCase and relative to the object, dots between levels; empty for the object.
        message: What is allowed; it reads on after the offending value ("must be at most maxTrialCount").
        cel: The same in Kubernetes' CEL over `self`, and `oldSelf` if it is about changes; none where that is more
            than an API server's budget allows: it takes what commands and the operator refuse.
        holds: Whether it holds for a model; none for rules that only a cluster has.
        culprit: Of a model that breaks it: what to name where the field's value is long.
    """

    field: str
    message: str
    cel: str | None
    holds: Callable[[Any], bool] | None = None
    culprit: Callable[[Any], object] | None = None

    def kubernetes(self) -> list[dict[str, str]]:
        """Its entry of `x-kubernetes-validations`, if it has one."""
        where = {"fieldPath": f".{self.field}"} if self.field else {}
        return [{"rule": self.cel, "message": self.message} | where] if self.cel is not None else []


def immutable(field: str) -> Rule:
    """A cluster refuses changes of the field. Fields with a default, and required ones, are always there to compare."""
    return Rule(field, "cannot be changed; make a new object instead", f"self.{field} == oldSelf.{field}")


def value_at(model: Any, path: str) -> Any:
    """A field's value by the path that documents have; none if a level is absent."""
    for part in path.split(".") if path else ():
        fields = {info.alias or name: name for name, info in type(model).model_fields.items()}
        model = getattr(model, fields[part])
        if model is None:
            return None
    return model


def unique(field: str, key: str) -> Rule:
    """No two items of the list have the same key."""

    def repeated(model: Any) -> Any:
        keys = [value_at(item, key) for item in value_at(model, field)]
        return next((value for index, value in enumerate(keys) if value in keys[:index]), None)

    cel = f"self.{field}.all(a, self.{field}.exists_one(b, b.{key} == a.{key}))"
    return Rule(
        field, f"must not have two items of the same {key}", cel, lambda model: repeated(model) is None, repeated
    )


def none_of(field: str, message: str, culprits: Callable[[Any], Iterator[object]]) -> Rule:
    """There are no such culprits, of which the first is named; a rule that CEL does not have."""
    return Rule(
        field, message, None, lambda model: not any(True for _ in culprits(model)), lambda model: next(culprits(model))
    )


def exactly_one(fields: Sequence[str]) -> Rule:
    """Of these optional fields one is given."""
    return Rule(
        "",
        f"must have exactly one of {', '.join(fields)}",
        f"[{', '.join(f'has(self.{name})' for name in fields)}].filter(given, given).size() == 1",
        lambda model: sum(value_at(model, name) is not None for name in fields) == 1,
    )


class Ruled(Frozen):
    """A part of a document with rules between its fields; all that are broken are reported, not only the first."""

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obey(self) -> Self:
        broken = [rule for rule in self.rules if rule.holds is not None and not rule.holds(self)]
        if broken:
            raise ValidationError.from_exception_data(type(self).__name__, [_details(self, rule) for rule in broken])
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        if entries := [entry for rule in cls.rules for entry in rule.kubernetes()]:
            handler.resolve_ref_schema(schema)["x-kubernetes-validations"] = entries
        return schema


def _details(model: Frozen, rule: Rule) -> InitErrorDetails:
    """The broken rule at its field, with the field's value."""
    message = f"{rule.message}: {rule.culprit(model)}" if rule.culprit else rule.message
    value = value_at(model, rule.field)
    if isinstance(value, tuple):
        value = [item.document() if isinstance(item, Frozen) else item for item in value]
    return InitErrorDetails(
        type=PydanticCustomError("rule", "{message}", {"message": message}),
        loc=tuple(rule.field.split(".")) if rule.field else (),
        input=value.document() if isinstance(value, Frozen) else value,
    )
