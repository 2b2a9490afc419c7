"""Base of every parsed document: frozen, closed, camelCase outside and snake_case inside."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Frozen(BaseModel):
    """A value parsed once from YAML or JSON: no unknown fields, no infinite numbers, no changes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )

    def document(self) -> dict[str, Any]:
        """The JSON object it was parsed from, without fields that were left out and have no default."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def essence(self) -> dict[str, Any]:
        """The part of it that is not as by default: a field that a later release adds, with a default, changes nothing.

        A digest of it names the same wish in all releases, which one of `document()` does not.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)


def canonical(content: Any) -> bytes:
    """One byte string per JSON value: sorted keys, no spaces, UTF-8."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(content: Any) -> str:
    """SHA-256 of a JSON value in canonical form, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(content)).hexdigest()
