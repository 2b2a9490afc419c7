"""HTML and SVG as text that is escaped unless it is already markup."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

VOID = frozenset({"br", "col", "hr", "meta"})
Attribute = str | int | float | bool | None


class Html(str):
    """Text that is markup already; everything else is escaped."""

    __slots__ = ()


def el(name: str, /, *children: str, **attributes: Attribute) -> Html:
    """An element; children that are not `Html` are escaped.

    Attribute names: `class_` is `class`, other underscores are hyphens (`stroke_width`); None and False are left out,
    True is an attribute without a value; numbers get at most two decimals.
    """
    head = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{head}>")
    return Html(f"<{name}{head}>{joined(children)}</{name}>")


def joined(parts: Iterable[str], between: str = "") -> Html:
    """Parts one after the other, escaped where they are not markup."""
    return Html(between.join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def title(text: str) -> Html:
    """What a browser, or the page's script, shows on hovering over the parent."""
    return el("title", text)


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{html.escape(_plain(value))}"'


def _plain(value: str | float) -> str:
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        raise ValueError(f"not a coordinate: {value}")
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
