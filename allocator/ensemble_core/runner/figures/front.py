"""The front: ensembles that no other beats in both cost and cross-entropy, and the budgets (paper, figures 5 and 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from ensemble_core.runner.facts import EnsembleFacts, RunFacts
from ensemble_core.runner.figures import charts
from ensemble_core.runner.figures.charts import BOTTOM, HEIGHT, LEFT, LINE, RIGHT, TOP, WIDTH, Axis, Label, Scale
from ensemble_core.runner.figures.markup import Html, el, joined, title
from ensemble_core.runner.wording import counted, given, known, number

ROWS = TOP + 6  # where the texts of the budgets begin
TIME = "inferenceTimeSeconds"
Point = tuple[float, float, int]  # cost, cross-entropy, members


def front_figure(facts: RunFacts) -> Html:
    """Steps of the non-dominated ensembles, time budgets as vertical lines, and what each budget got."""
    front = sorted(p for p in facts.front if known(p[0]) and math.isfinite(p[1]))
    chosen = [e for e in (facts.best_single, *facts.ensembles) if known(e.cost) and e.validation is not None]
    if not front and not chosen:
        return el("p", "No ensemble has a cost, so there is no front.", class_="empty")
    budgets = _lines(facts.ensembles)
    costs = [p[0] for p in front] + [e.cost for e in chosen if known(e.cost)] + [limit for _, _, limit in budgets]
    entropies = [p[1] for p in front] + [e.validation.cross_entropy for e in chosen if e.validation is not None]
    x = charts.scale_of(costs, LEFT, WIDTH - RIGHT, log=True)
    rows = _rows(budgets, x)
    y = charts.scale_of(entropies, HEIGHT - BOTTOM, ROWS + LINE * (max(rows, default=-1) + 1), log=True)
    chart = charts.svg(
        charts.axes(
            Axis(x, "cost, seconds per 2000 samples, logarithmic"),
            Axis(y, "validation cross-entropy, nats, logarithmic"),
        ),
        *(_line(budget, row, x) for budget, row in zip(budgets, rows, strict=True)),
        *(_name(budget, row, x) for budget, row in zip(budgets, rows, strict=True)),
        _steps(front, x, y),
        *(_chosen(facts, ensemble, x, y) for ensemble in chosen),
        _counts(front, facts, x, y),
        label=f"Cost against validation cross-entropy of {len(front)} non-dominated ensembles",
    )
    return joined([chart, _legend(facts)])


def _lines(ensembles: Sequence[EnsembleFacts]) -> list[tuple[int, EnsembleFacts, float]]:
    limits = ((index, ensemble, (ensemble.budget or {}).get(TIME)) for index, ensemble in enumerate(ensembles))
    return [(index, ensemble, limit) for index, ensemble, limit in limits if limit]


def _text(ensemble: EnsembleFacts, limit: float) -> str:
    name = ensemble.name if len(ensemble.name) <= 20 else f"{ensemble.name[:18]}…"
    return f"{name} {given(limit)} s"


def _centre(text: str, at: float) -> float:
    half = len(text) * charts.CHARACTER / 2
    return min(max(at, LEFT + half), WIDTH - 2 - half)


def _rows(budgets: Sequence[tuple[int, EnsembleFacts, float]], x: Scale) -> list[int]:
    """In which row each budget's text stands, so that none overlaps; first fit."""
    ends: list[list[tuple[float, float]]] = []
    rows = []
    for _, ensemble, limit in budgets:
        text = _text(ensemble, limit)
        centre, half = _centre(text, x(limit)), len(text) * charts.CHARACTER / 2 + 3
        span = (centre - half, centre + half)
        row = next((i for i, row in enumerate(ends) if all(span[1] < a or b < span[0] for a, b in row)), len(ends))
        if row == len(ends):
            ends.append([])
        ends[row].append(span)
        rows.append(row)
    return rows


def _line(budget: tuple[int, EnsembleFacts, float], row: int, x: Scale) -> Html:
    index, ensemble, limit = budget
    at, key = x(limit), charts.key("budget", ensemble.name)
    line = el("line", class_=f"budget {charts.hue(index)}", x1=at, x2=at, y1=ROWS + LINE * row, y2=HEIGHT - BOTTOM)
    return el("g", line, data_k=key)


def _name(budget: tuple[int, EnsembleFacts, float], row: int, x: Scale) -> Html:
    """A budget's text, drawn after all lines."""
    index, ensemble, limit = budget
    text, key = _text(ensemble, limit), charts.key("budget", ensemble.name)
    at, y = _centre(text, x(limit)), ROWS + LINE * row - 5
    label = el("text", text, class_=f"label ink {charts.hue(index)}", x=at, y=y, text_anchor="middle")
    return el("g", label, data_k=key)


def _steps(front: Sequence[Point], x: Scale, y: Scale) -> Html:
    if not front:
        return Html("")
    path = [f"M{x(front[0][0]):.1f},{y(front[0][1]):.1f}"]
    path += [f"H{x(cost):.1f}V{y(entropy):.1f}" for cost, entropy, _ in front[1:]]
    dots = [
        el(
            "circle",
            title(f"{counted(members, 'member')}, {number(cost)} s / 2000\nvalidation cross-entropy {number(entropy)}"),
            class_="dot",
            cx=x(cost),
            cy=y(entropy),
            r=3.4,
        )
        for cost, entropy, members in front
    ]
    return joined([el("path", class_="front", d="".join(path)), *dots])


def _chosen(facts: RunFacts, ensemble: EnsembleFacts, x: Scale, y: Scale) -> Html:
    if ensemble.cost is None or ensemble.validation is None:
        return Html("")
    at = (x(ensemble.cost), y(ensemble.validation.cross_entropy))
    if ensemble.budget is None:
        sign, key, name = charts.star(*at, 9.0), None, "Best single model"
    else:
        index = facts.ensembles.index(ensemble)
        sign = charts.shape(index, *at, 7.5, f"ring {charts.hue(index)}")
        key, name = charts.key("budget", ensemble.name), f"Budget “{ensemble.name}”"
    text = (
        f"{name}: {counted(len(ensemble.members), 'member')}, {number(ensemble.cost)} s / 2000\n"
        f"validation cross-entropy {number(ensemble.validation.cross_entropy)}"
    )
    return el("g", title(text), sign, data_k=key)


def _counts(front: Sequence[Point], facts: RunFacts, x: Scale, y: Scale) -> Html:
    """`#k` beside a point, as the paper marks ensembles of k models; chosen ones first, crowded ones without."""
    costs = {ensemble.cost for ensemble in facts.ensembles}
    ordered = sorted(front, key=lambda point: (point[0] not in costs, point[2], point[0]))
    labels = [Label(x(cost), y(entropy), f"#{members}") for cost, entropy, members in ordered]
    corners = [(x(cost), y(entropy)) for cost, entropy, _ in front]
    bends = [corner for (_, y0), (x1, y1) in pairwise(corners) for corner in ((x1, y0), (x1, y1))]
    obstacles = [*(charts.around(*corner, 6.0) for corner in corners), *charts.along(corners[:1] + bends)]
    obstacles += [
        charts.around(x(e.cost), y(e.validation.cross_entropy), 10.0)
        for e in (facts.best_single, *facts.ensembles)
        if known(e.cost) and e.validation is not None
    ]
    obstacles += [(x(limit) - 2, 0.0, x(limit) + 2, float(HEIGHT)) for _, _, limit in _lines(facts.ensembles)]
    return charts.place(labels, (LEFT + 2, y.end, WIDTH - 2, HEIGHT - BOTTOM), obstacles)


def _legend(facts: RunFacts) -> Html:
    dot = el("circle", class_="dot", cx=12, cy=10, r=3.4)
    entries: list[tuple[Html, str, str | None]] = [
        (dot, "ensemble on the front, #members", None),
        (charts.star(12, 10, 8.5), "best single", None),
    ]
    for index, ensemble in enumerate(facts.ensembles):
        if ensemble.members:
            ring = charts.shape(index, 12, 10, 6, f"ring {charts.hue(index)}")
            entries.append((ring, f"picked for “{ensemble.name}”", charts.key("budget", ensemble.name)))
    return charts.legend(entries)
