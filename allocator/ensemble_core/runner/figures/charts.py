"""What the figures share: scales, ticks, axes, labels that do not overlap, and the signs of the budgets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ensemble_core.runner.figures.markup import Html, el, joined
from ensemble_core.runner.wording import given

WIDTH, HEIGHT = 520, 380
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 34, 54  # margins of the plot in the view box
CHARACTER, LINE = 8.6, 17.0  # a label's largest character width and height: small screens enlarge the text
SHAPES = ("circle", "square", "diamond", "triangle")
HUES = 6


@dataclass(frozen=True)
class Scale:
    """From a quantity to a coordinate.

    Args:
        low, high: Of the quantity, low < high; both > 0 if logarithmic.
        start, end: Of the coordinate; start > end for an axis that points up.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low * 1e-9))
        share = min(1.0, max(0.0, (at - low) / (high - low)))
        return self.start + share * (self.end - self.start)

    def ticks(self) -> tuple[float, ...]:
        """Round values inside the scale, three to eight of them."""
        if self.log:
            for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7)):
                found = _log_ticks(self.low, self.high, mantissas)
                if 3 <= len(found) <= 7:
                    return found
        return linear_ticks(self.low, self.high)


def _log_ticks(low: float, high: float, mantissas: Sequence[int]) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, len(decades) // 7)
    values = (mantissa * 10.0**decade for decade in decades[::every] for mantissa in mantissas)
    return tuple(value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9))


def linear_ticks(low: float, high: float) -> tuple[float, ...]:
    """Three to eight multiples of 1, 2 or 5 times a power of ten between low and high: the coarsest there are."""
    power = 10.0 ** math.floor(math.log10(high - low))
    steps = (power * step for step in (1, 0.5, 0.2, 0.1))
    return next(found for found in (_multiples(low, high, step) for step in steps) if len(found) >= 3)


def _multiples(low: float, high: float, step: float) -> tuple[float, ...]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(index * step for index in range(first, last + 1))


def scale_of(values: Iterable[float], start: float, end: float, log: bool = False) -> Scale:
    """A scale that holds the finite values with some room around; any scale if there are none."""
    found = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    low, high = (min(found), max(found)) if found else (0.1, 1.0)
    if log:
        room = max((high / low) ** 0.06, 1.15)
        return Scale(low / room, high * room, start, end, log=True)
    room = (high - low) * 0.08 or abs(high) * 0.2 or 1.0
    return Scale(max(0.0, low - room) if low >= 0 else low - room, high + room, start, end)


@dataclass(frozen=True)
class Axis:
    scale: Scale
    name: str
    label: Callable[[float], str] = given


def axes(x: Axis, y: Axis) -> Html:
    """Grid, tick labels and the names of both axes; the plot's edges are those of the scales."""
    left, right, bottom = x.scale.start, x.scale.end, y.scale.start
    parts: list[str] = []
    for tick in y.scale.ticks():
        at = y.scale(tick)
        parts += [
            el("line", class_="grid", x1=left, x2=right, y1=at, y2=at),
            el("text", y.label(tick), class_="tick", x=left - 7, y=at + 4, text_anchor="end"),
        ]
    for tick in x.scale.ticks():
        at = x.scale(tick)
        parts += [
            el("line", class_="grid", x1=at, x2=at, y1=y.scale.end, y2=bottom),
            el("text", x.label(tick), class_="tick", x=at, y=bottom + 18, text_anchor="middle"),
        ]
    parts += [
        el("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom),
        el("text", y.name, class_="name", x=4, y=16),
        el("text", x.name, class_="name", x=right, y=bottom + 41, text_anchor="end"),
    ]
    return joined(parts)


def svg(*children: str, label: str, width: int = WIDTH) -> Html:
    """A figure that scales with its column."""
    return el("svg", *children, class_="chart", viewBox=f"0 0 {width} {HEIGHT}", role="img", aria_label=label)


@dataclass(frozen=True)
class Label:
    x: float
    y: float
    text: str
    class_: str = "label"


Box = tuple[float, float, float, float]  # left, top, right, bottom


def place(labels: Sequence[Label], bounds: Box, obstacles: Sequence[Box] = ()) -> Html:
    """Texts beside their points, the first ones first; one that finds no free place is left out.

    A free place touches no other label, no obstacle and no edge. O(L·(L + O)) for L labels and O obstacles.
    """
    taken, parts = list(obstacles), []
    for label in labels:
        found = next((box for box in _places(label) if _inside(box, bounds) and not _touches(box, taken)), None)
        if found is not None:
            taken.append(found)
            middle = (found[0] + found[2]) / 2
            parts.append(el("text", label.text, class_=label.class_, x=middle, y=found[3] - 4.5, text_anchor="middle"))
    return joined(parts)


def _places(label: Label) -> Iterable[Box]:
    width = len(label.text) * CHARACTER + 4
    for gap in (7.0, 16.0):
        for across, down in ((0, -1), (1, -1), (1, 0), (-1, -1), (0, 1), (1, 1), (-1, 0), (-1, 1)):
            x = label.x + across * (width / 2 + gap * 0.8)
            y = label.y + down * (LINE / 2 + gap * 0.7)
            yield (x - width / 2, y - LINE / 2, x + width / 2, y + LINE / 2)


def _inside(box: Box, bounds: Box) -> bool:
    return box[0] >= bounds[0] and box[1] >= bounds[1] and box[2] <= bounds[2] and box[3] <= bounds[3]


def _touches(box: Box, others: Iterable[Box]) -> bool:
    return any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others)


def along(points: Sequence[tuple[float, float]]) -> list[Box]:
    """Boxes that cover a line, for labels to keep off it."""
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(points):
        parts = max(1, math.ceil(max(abs(x1 - x0), abs(y1 - y0)) / 5))
        boxes += [around(x0 + (x1 - x0) * i / parts, y0 + (y1 - y0) * i / parts, 2.0) for i in range(parts + 1)]
    return boxes


def around(x: float, y: float, radius: float) -> Box:
    """The box that a point covers."""
    return (x - radius, y - radius, x + radius, y + radius)


def shape(index: int, x: float, y: float, radius: float, class_: str) -> Html:
    """The outline that stands for a budget, so that colour is not its only sign."""
    kind = SHAPES[index % len(SHAPES)]
    r = radius
    if kind == "circle":
        return el("circle", class_=class_, cx=x, cy=y, r=float(r))
    paths = {
        "square": f"M{x - r:.1f},{y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z",
        "diamond": f"M{x:.1f},{y - 1.3 * r:.1f}l{1.3 * r:.1f},{1.3 * r:.1f}l{-1.3 * r:.1f},{1.3 * r:.1f}"
        f"l{-1.3 * r:.1f},{-1.3 * r:.1f}z",
        "triangle": f"M{x:.1f},{y - 1.5 * r:.1f}l{1.4 * r:.1f},{2.4 * r:.1f}h{-2.8 * r:.1f}z",
    }
    return el("path", class_=class_, d=paths[kind])


def star(x: float, y: float, radius: float) -> Html:
    """The best single model."""
    points = []
    for corner in range(10):
        reach = radius if corner % 2 == 0 else radius * 0.42
        angle = math.pi * (corner / 5 - 0.5)
        points.append(f"{x + reach * math.cos(angle):.1f},{y + reach * math.sin(angle):.1f}")
    return el("polygon", class_="star", points=" ".join(points))


def hue(index: int) -> str:
    """CSS class of a budget's colour."""
    return f"hue{index % HUES}"


def legend(entries: Sequence[tuple[Html, str, str | None]]) -> Html:
    """Sign, text, and the key that highlights what belongs to it."""
    items = (
        el(
            "li",
            el("svg", sign, viewBox="0 0 24 20", width=24, height=20, aria_hidden="true"),
            el("span", text),
            data_k=key,
        )
        for sign, text, key in entries
    )
    return el("ul", *items, class_="legend")


def key(kind: str, name: str) -> str:
    """What the page's script highlights together: a word, as an element may belong to several."""
    return f"{kind}:{'_'.join(name.split())}"
