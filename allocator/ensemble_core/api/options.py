"""Options of commands that stand for fields of documents."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from ensemble_core.errors import UserError


def check_option(option: str, model: type[BaseModel], field: str, value: object, typed: str | None = None) -> None:
    """UserError that names the option and says what is allowed, unless the field of that name takes the value.

    `typed` is what the user wrote, where the value is not all of it.
    """
    info = model.model_fields[field]
    allowed: Any = Annotated[info.annotation, *info.metadata]
    try:
        TypeAdapter(allowed, config={"allow_inf_nan": False}).validate_python(value, strict=True)
    except ValidationError as error:
        told = error.errors()[0]["msg"].replace("Input should", "must")
        raise UserError(option, f"{value if typed is None else typed} {told}") from None
