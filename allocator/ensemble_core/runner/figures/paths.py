"""SMOBF's paths: which model each weight added, step by step, under one budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ensemble_core.runner.facts import EnsembleFacts, PathFacts, RunFacts
from ensemble_core.runner.figures import charts
from ensemble_core.runner.figures.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, Axis, Label, Scale
from ensemble_core.runner.figures.front import TIME
from ensemble_core.runner.figures.markup import Html, el, joined, title
from ensemble_core.runner.wording import given, limits, number, short_names

WIDTH = 400  # narrower than other figures: three stand side by side
DASHES = ("none", "7 4", "2 4", "9 3 2 3", "4 2")


def path_figures(facts: RunFacts) -> Html:
    """One figure for each budget that has paths; a sentence for one that has none."""
    names = short_names([model.id for model in facts.models] or [step[0] for p in facts.paths for step in p.steps])
    return joined(_figure(facts, index, names) for index in range(len(facts.ensembles)))


def _figure(facts: RunFacts, index: int, names: Mapping[str, str]) -> Html:
    ensemble = facts.ensembles[index]
    paths = [path for path in facts.paths if path.budget == ensemble.name and path.steps]
    head = el("h3", f"{ensemble.name} ", el("small", limits(ensemble.budget)))
    if not paths:
        return el("div", head, el("p", ensemble.reason or "No path was recorded.", class_="empty"), class_="panel")
    x, y = _scales(paths, ensemble)
    chart = charts.svg(
        charts.axes(Axis(x, "cost, seconds per 2000 samples"), Axis(y, "validation cross-entropy, nats")),
        _limit(ensemble, index, x),
        *(_path(path, number_, index, names, (x, y)) for number_, path in _drawn(paths)),
        _labels(paths, ensemble, names, x, y),
        label=f"Paths of {len(paths)} weights under budget {ensemble.name}",
        width=WIDTH,
    )
    return el("div", head, chart, _lists(paths, names), class_="panel")


def _scales(paths: Sequence[PathFacts], ensemble: EnsembleFacts) -> tuple[Scale, Scale]:
    steps = [step for path in paths for step in path.steps]
    costs = [0.0, *(cost for _, _, cost in steps)]
    limit = (ensemble.budget or {}).get(TIME)
    if limit and limit <= 3 * max(costs):  # a limit far off would squeeze the steps
        costs.append(limit)
    x = charts.scale_of(costs, LEFT, WIDTH - RIGHT)
    return x, charts.scale_of((entropy for _, entropy, _ in steps), HEIGHT - BOTTOM, TOP)


def _drawn(paths: Sequence[PathFacts]) -> list[tuple[int, PathFacts]]:
    """The winner last, so that it is on top."""
    return sorted(enumerate(paths), key=lambda pair: pair[1].won)


def _limit(ensemble: EnsembleFacts, index: int, x: Scale) -> Html:
    limit = (ensemble.budget or {}).get(TIME)
    if not limit or limit > x.high:
        return Html("")
    line = el("line", class_=f"budget {charts.hue(index)}", x1=x(limit), x2=x(limit), y1=TOP, y2=HEIGHT - BOTTOM)
    words = f"limit {given(limit)} s"
    text = el("text", words, class_=f"label ink {charts.hue(index)}", x=x(limit), y=TOP - 6, text_anchor="end")
    return joined([line, text])


def _path(path: PathFacts, order: int, index: int, names: Mapping[str, str], scales: tuple[Scale, Scale]) -> Html:
    x, y = scales
    at = [(x(cost), y(entropy)) for _, entropy, cost in path.steps]
    line = " ".join(f"{px:.1f},{py:.1f}" for px, py in at)
    dots = [
        el(
            "circle",
            title(
                f"w = {given(path.weight)}, step {step + 1}: adds {model}\n"
                f"validation cross-entropy {number(entropy)}, {number(cost)} s / 2000"
            ),
            cx=px,
            cy=py,
            r=4.6 if path.won else 3.2,
        )
        for step, ((model, entropy, cost), (px, py)) in enumerate(zip(path.steps, at, strict=True))
    ]
    return el(
        "g",
        el("polyline", points=line, stroke_dasharray="none" if path.won else DASHES[order % len(DASHES)]),
        *dots,
        class_=f"path {'won ' + charts.hue(index) if path.won else 'lost'}",
        data_k=_key(path),
    )


def _key(path: PathFacts) -> str:
    return charts.key("path", f"{path.budget}/{path.weight!r}")


def _labels(paths: Sequence[PathFacts], ensemble: EnsembleFacts, names: Mapping[str, str], x: Scale, y: Scale) -> Html:
    """The winner's models, those at the others' ends with their weight, then the rest, where there is room."""
    won = [path for path in paths if path.won]
    lost = [path for path in paths if not path.won]
    labels = [
        Label(x(cost), y(entropy), names.get(model, model), "label strong")
        for p in won
        for model, entropy, cost in p.steps
    ]
    labels += [
        Label(x(cost), y(entropy), f"{names.get(model, model)} w {given(path.weight)}", "label soft")
        for path in lost
        for model, entropy, cost in path.steps[-1:]
    ]
    labels += [
        Label(x(cost), y(entropy), names.get(model, model), "label soft")
        for p in lost
        for model, entropy, cost in p.steps[:-1]
    ]
    distinct = {(round(label.x), round(label.y), label.text): label for label in reversed(labels)}
    chosen = [label for label in labels if distinct[(round(label.x), round(label.y), label.text)] is label]
    obstacles = [charts.around(x(cost), y(entropy), 5.0) for path in paths for _, entropy, cost in path.steps]
    for path in paths:
        obstacles += charts.along([(x(cost), y(entropy)) for _, entropy, cost in path.steps])
    limit = (ensemble.budget or {}).get(TIME)
    if limit and limit <= x.high:
        obstacles.append((x(limit) - 2, 0.0, x(limit) + 2, float(HEIGHT)))
    return charts.place(chosen, (LEFT + 2, TOP - 16, WIDTH - 2, HEIGHT - BOTTOM), obstacles)


def _lists(paths: Sequence[PathFacts], names: Mapping[str, str]) -> Html:
    rows = [
        el(
            "tr",
            el("th", ("★ " if path.won else "") + given(path.weight), scope="row"),
            el("td", number(path.steps[-1][1]), class_="n"),
            el("td", number(path.steps[-1][2]), class_="n"),
            el("td", joined((el("span", names.get(step[0], step[0]), title=step[0]) for step in path.steps), " → ")),
            class_="won" if path.won else None,
            data_k=_key(path),
        )
        for path in paths
    ]
    head = el("tr", *(el("th", text, scope="col") for text in ("weight", "cross-entropy", "cost", "models, as added")))
    return el("div", el("table", el("thead", head), el("tbody", *rows), class_="small"), class_="scroll")
