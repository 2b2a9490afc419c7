"""The timeline: what every slot was busy with, and how many slots were busy when."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ensemble_core.library.timeline import Span
from ensemble_core.runner.facts import RunFacts
from ensemble_core.runner.figures import charts
from ensemble_core.runner.figures.markup import Html, el, joined, title
from ensemble_core.runner.wording import THIN, duration

STRIP = 44  # height of the strip of busy slots, pixels
AXIS = 26
BINS = 160  # of the strip
PAUSE = 0.05  # share of the busy time from which a gap with no slot busy is a pause, cut out of the axis
CUT = 0.012  # share of the busy time that stays of a pause
NARROWEST = 0.12  # percent of the width
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
ROUGHEST = 900.0  # pixels of width from which texts inside spans are shown


@dataclass(frozen=True)
class Clock:
    """From Unix seconds to percent of the width, without the pauses.

    Args:
        runs: Busy stretches, (start, end) in Unix seconds, ascending, with pauses between them.
        cut: Seconds that a pause takes on the axis.
    """

    runs: tuple[tuple[float, float], ...]
    cut: float

    @property
    def seconds(self) -> float:
        return sum(end - start for start, end in self.runs) + self.cut * (len(self.runs) - 1)

    def elapsed(self, time: float) -> float:
        """Seconds on the axis, within it."""
        passed = 0.0
        for start, end in self.runs:
            if time <= end:
                return passed + max(0.0, time - start)
            passed += end - start + self.cut
        return self.seconds

    def percent(self, time: float) -> float:
        return 100 * self.elapsed(time) / self.seconds

    def pauses(self) -> tuple[tuple[float, float], ...]:
        """(percent of the width, seconds left out)."""
        return tuple((self.percent(first[1]), second[0] - first[1]) for first, second in pairwise(self.runs))


def clock_of(spans: Sequence[Span]) -> Clock:
    """The axis of some spans: gaps in which nothing ran, as between two attempts, are pauses."""
    merged: list[tuple[float, float]] = []
    for span in sorted(spans, key=lambda span: span.started_at):
        start, end = span.started_at, max(span.finished_at, span.started_at)
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    busy = sum(end - start for start, end in merged) or 1.0
    runs = merged[:1]
    for start, end in merged[1:]:
        if start - runs[-1][1] > PAUSE * busy:
            runs.append((start, end))
        else:
            runs[-1] = (runs[-1][0], end)
    if runs[-1][1] <= runs[0][0]:
        runs = [(runs[0][0], runs[0][0] + 1.0)]
    return Clock(tuple(runs), CUT * busy)


def timeline_figure(facts: RunFacts) -> Html:
    """Rows of spans, one for each slot, under a strip that counts busy slots."""
    spans = [s for s in facts.spans if math.isfinite(s.started_at) and math.isfinite(s.finished_at)]
    if not spans:
        return el("p", "No trial ran: the library was imported or its trials were recorded elsewhere.", class_="empty")
    slots = max(facts.slots, max(span.slot for span in spans) + 1)
    row = _row_height(slots)
    clock, height = clock_of(spans), STRIP + slots * row + AXIS
    models = {int(found[1]): m.id for m in reversed(facts.models) if (found := re.search(r"-(\d{4,})$", m.id))}
    chart = el(
        "svg",
        _time_axis(clock, height),
        _strip(spans, clock, slots),
        *_rows(spans, clock, slots, row),
        *_spans(spans, clock, row, models),
        _pauses(clock, height),
        class_="timeline",
        width="100%",
        height=height,
        role="img",
        aria_label=f"Timeline of {len({s.trial for s in spans})} trials over {slots} slots",
    )
    return joined([el("div", _hatch(), chart, class_="lanes"), _legend(spans)])


def _row_height(slots: int) -> int:
    return next((height for most, height in ((4, 36), (8, 26), (16, 18), (40, 13)) if slots <= most), 7)


def _at(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") + "%"


def _time_axis(clock: Clock, height: int) -> Html:
    step = next((step for step in STEPS if clock.seconds / step <= 9), 86400 * math.ceil(clock.seconds / 9 / 86400))
    parts: list[Html] = []
    for index in range(int(clock.seconds / step) + 1):
        at = 100 * index * step / clock.seconds
        parts.append(el("line", class_="grid", x1=_at(at), x2=_at(at), y1=0, y2=height - AXIS))
        if at <= 97:
            classes = "tick" if index % 2 == 0 else "tick odd"
            anchor = "start" if index == 0 else "middle"
            parts.append(
                el("text", duration(index * step), class_=classes, x=_at(at), y=height - 8, text_anchor=anchor)
            )
    return joined(parts)


def _strip(spans: Sequence[Span], clock: Clock, slots: int) -> Html:
    """Busy slots over time, averaged in bins."""
    width, busy = clock.seconds / BINS, [0.0] * BINS
    for span in spans:
        start, end = clock.elapsed(span.started_at), clock.elapsed(span.finished_at)
        for index in range(int(start / width), min(BINS, int(end / width) + 1)):
            busy[index] += max(0.0, min(end, (index + 1) * width) - max(start, index * width))
    bars = []
    for index, seconds in enumerate(busy):
        share = min(1.0, seconds / width / slots)
        if share > 0:
            x, tall = _at(100 * index / BINS), share * (STRIP - 12)
            bars.append(el("rect", class_="busy", x=x, y=STRIP - 8 - tall, width=_at(100 / BINS), height=tall))
    full = el("line", class_="axis dashed", x1="0%", x2="100%", y1=4, y2=4)
    texts = [
        el("text", text, class_="tick", x=0, dx=-6, y=y, text_anchor="end")
        for text, y in ((str(slots), 9), ("0", STRIP - 8))
    ]
    return joined([*bars, full, el("line", class_="axis", x1="0%", x2="100%", y1=STRIP - 8, y2=STRIP - 8), *texts])


def _rows(spans: Sequence[Span], clock: Clock, slots: int, row: int) -> list[Html]:
    """Each slot's name at the left, and at the right the share of the time in which it was busy."""
    total = sum(end - start for start, end in clock.runs)
    busy: dict[int, float] = defaultdict(float)
    for span in spans:
        busy[span.slot] += max(0.0, span.finished_at - span.started_at)
    every = 1 if row > 10 else 8
    parts = []
    for slot in range(slots):
        y = STRIP + slot * row
        parts.append(el("rect", class_="lane", x="0%", y=y + 1, width="100%", height=row - 2))
        if slot % every == 0:
            text, middle = f"{min(100, round(100 * busy[slot] / total))}{THIN}%", y + row / 2 + 4
            parts.append(el("text", f"slot {slot}", class_="tick", x=0, dx=-6, y=middle, text_anchor="end"))
            parts.append(el("text", text, class_="tick", x="100%", dx=6, y=middle))
    return parts


def _kind(label: str) -> str:
    if label.startswith("failed"):
        return "failed"
    return "epochs" if label.startswith("epoch") else "export"


def _spans(spans: Sequence[Span], clock: Clock, row: int, models: Mapping[int, str]) -> list[Html]:
    calls: dict[int, int] = defaultdict(int)
    parts = []
    for span in sorted(spans, key=lambda span: (span.started_at, span.slot, span.trial)):
        kind = _kind(span.label)
        classes = f"span {kind}"
        if kind == "epochs":
            classes += f" call{min(calls[span.trial], 3)}"
            calls[span.trial] += 1
        parts.append(_span(span, clock, row, classes, models.get(span.trial)))
    return parts


def _span(span: Span, clock: Clock, row: int, classes: str, model: str | None) -> Html:
    start, end = clock.percent(span.started_at), clock.percent(span.finished_at)
    width = max(end - start, NARROWEST)
    x, y = min(start, 100 - width), STRIP + span.slot * row + 1
    seconds = duration(max(0.0, span.finished_at - span.started_at))
    hover = title(f"trial {span.trial}: {span.label}\n{seconds} on slot {span.slot}" + (f"\n{model}" if model else ""))
    parts = [el("rect", hover, class_=classes, x=_at(x), y=y, width=_at(width), height=row - 2)]
    text = str(span.trial)
    if row >= 13 and width / 100 * ROUGHEST >= 6.5 * len(text) + 5:
        middle, tight = y + row / 2 + (3 if row >= 18 else 2.5), "" if row >= 18 else "tight "
        parts.append(
            el("text", text, class_=f"within {tight}{classes}", x=_at(x + width / 2), y=middle, text_anchor="middle")
        )
    return el("g", *parts, data_k=charts.key("model", model) if model else charts.key("trial", str(span.trial)))


def _pauses(clock: Clock, height: int) -> Html:
    parts = []
    for at, seconds in clock.pauses():
        middle = at + 50 * clock.cut / clock.seconds
        line = el("line", class_="pause", x1=_at(middle), x2=_at(middle), y1=0, y2=height - AXIS)
        parts.append(el("g", title(f"nothing ran for {duration(seconds)}; left out"), line))
    return joined(parts)


def _hatch() -> Html:
    stripe = el("path", class_="hatch", d="M-1,1l2,-2M0,6l6,-6M5,7l2,-2")
    pattern = el("pattern", stripe, id="hatch", width=6, height=6, patternUnits="userSpaceOnUse")
    return el("svg", el("defs", pattern), width=0, height=0, class_="defs", aria_hidden="true")


def _legend(spans: Sequence[Span]) -> Html:
    kinds = {_kind(span.label) for span in spans}
    ladder = [el("rect", class_=f"span epochs call{call}", x=6 * call, y=3, width=6, height=14) for call in range(4)]
    entries: list[tuple[Html, str, str | None]] = [
        (joined(ladder), "training; darker: a later call of the same trial", None)
    ]
    for kind, text in (("export", "predicting and exporting"), ("failed", "failed")):
        if kind in kinds:
            entries.append((el("rect", class_=f"span {kind}", x=2, y=3, width=20, height=14), text, None))
    if len(clock_of(spans).runs) > 1:
        entries.append((el("line", class_="pause", x1=12, x2=12, y1=0, y2=20), "pause, left out", None))
    return charts.legend(entries)
