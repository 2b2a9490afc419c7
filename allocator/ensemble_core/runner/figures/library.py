"""The library: every model's cost against its validation error (the paper's figures 5 and 6, model by model)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ensemble_core.runner.facts import ModelFacts, RunFacts
from ensemble_core.runner.figures import charts
from ensemble_core.runner.figures.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Scale
from ensemble_core.runner.figures.markup import Html, el, joined, title
from ensemble_core.runner.wording import counted, given, known, number, percent

GUTTER = 78  # room at the right for models without a cost
MANY = 100  # models from which points are smaller
SPREAD = 8.0  # errors that differ by more than this factor get a logarithmic axis


@dataclass(frozen=True)
class Field:
    """Where the points are; `unknown` is the coordinate of models without a cost."""

    x: Scale
    y: Scale
    unknown: float
    floor: float  # error, below which the axis does not go

    def at(self, model: ModelFacts) -> tuple[float, float]:
        x = self.x(model.cost or 0.0) if known(model.cost) else self.unknown
        return x, self.y(max(model.validation.error, self.floor))


def library_figure(facts: RunFacts) -> Html:
    """Scatter of all models with the members of each budget ringed, and its legend."""
    if not facts.models:
        return el("p", "The library holds no model.", class_="empty")
    field = _field(facts)
    keys = _keys(facts)
    ordered = sorted(facts.models, key=lambda model: (model.kept, model.id in keys, model.id))
    ringed = [el("g", _ring(facts, model, field), data_k=keys[model.id]) for model in ordered if model.id in keys]
    radius = 3.2 if len(facts.models) > MANY else 4.6
    points = [_point(model, field, radius, keys.get(model.id, "")) for model in ordered]
    chart = charts.svg(
        _axes(field, any(not known(model.cost) for model in facts.models)),
        joined(ringed),
        joined(points),
        _best(facts, field),
        label=f"Cost against validation error of {counted(len(facts.models), 'model')}",
    )
    return joined([chart, _legend(facts)])


def _field(facts: RunFacts) -> Field:
    unknown = any(not known(model.cost) for model in facts.models)
    right = WIDTH - RIGHT - (GUTTER if unknown else 0)
    floor = 0.5 / max(1, facts.samples.get("validation", 1000))  # half a sample: a log axis has no 0
    errors = [max(model.validation.error, floor) for model in facts.models]
    log = max(errors) > SPREAD * min(errors)
    return Field(
        x=charts.scale_of((model.cost or 0.0 for model in facts.models), LEFT, right, log=True),
        y=charts.scale_of(errors, HEIGHT - BOTTOM, TOP, log=log),
        unknown=WIDTH - RIGHT - GUTTER / 2 + 6,
        floor=floor,
    )


def _axes(field: Field, unknown: bool) -> Html:
    scaled = ", logarithmic" if field.y.log else ""
    frame = charts.axes(
        Axis(field.x, "cost, seconds per 2000 samples, logarithmic"),
        Axis(field.y, f"validation error, %{scaled}", lambda share: given(100 * share)),
    )
    if not unknown:
        return frame
    edge, bottom = field.x.end + 12, field.y.start
    gutter = el("line", class_="axis dashed", x1=edge, x2=edge, y1=field.y.end, y2=bottom)
    words = el("text", "no cost", class_="tick", x=field.unknown, y=bottom + 18, text_anchor="middle")
    return joined([frame, gutter, words])


def _keys(facts: RunFacts) -> Mapping[str, str]:
    """Members of any ensemble, each with the words that highlight it."""
    found: dict[str, list[str]] = {}
    for ensemble in facts.ensembles:
        for member in ensemble.members:
            found.setdefault(member, [charts.key("model", member)]).append(charts.key("budget", ensemble.name))
    return {member: " ".join(words) for member, words in found.items()}


def _point(model: ModelFacts, field: Field, radius: float, keys: str) -> Html:
    x, y = field.at(model)
    classes = ["model", "hollow" if model.stopped_early else "full", "" if model.kept else "faint"]
    return el(
        "g",
        el("circle", title(describe(model)), cx=x, cy=y, r=radius),
        class_=" ".join(filter(None, classes)),
        data_k=keys or charts.key("model", model.id),
    )


def _ring(facts: RunFacts, model: ModelFacts, field: Field) -> Html:
    x, y = field.at(model)
    rings: list[Html] = []
    for index, ensemble in enumerate(facts.ensembles):
        if model.id in ensemble.members:
            ring = charts.shape(index, x, y, 7.5 + 3.2 * len(rings), f"ring {charts.hue(index)}")
            rings.append(el("g", ring, data_k=charts.key("budget", ensemble.name)))
    return joined(rings)


def _best(facts: RunFacts, field: Field) -> Html:
    best = next((model for model in facts.models if model.id in facts.best_single.members), None)
    if best is None:
        return Html("")
    x, y = field.at(best)
    text = f"Best single model\n{describe(best)}"
    return el("g", el("g", title(text), charts.star(x, y, 9.0)), data_k=charts.key("model", best.id))


def _legend(facts: RunFacts) -> Html:
    dot = el("g", el("circle", cx=12, cy=10, r=4.6), class_="model full")
    entries: list[tuple[Html, str, str | None]] = [(dot, "model", None)]
    if any(model.stopped_early for model in facts.models):
        hollow = el("g", el("circle", cx=12, cy=10, r=4.6), class_="model hollow")
        entries.append((hollow, "stopped early", None))
    if any(not model.kept for model in facts.models):
        faint = el("g", el("circle", cx=12, cy=10, r=4.6), class_="model full faint")
        entries.append((faint, "pruned before the selection", None))
    entries.append((charts.star(12, 10, 8.5), "best single by validation", None))
    for index, ensemble in enumerate(facts.ensembles):
        if ensemble.members:
            ring = charts.shape(index, 12, 10, 6, f"ring {charts.hue(index)}")
            entries.append((ring, f"in “{ensemble.name}”", charts.key("budget", ensemble.name)))
    return charts.legend(entries)


def describe(model: ModelFacts) -> str:
    """A model in some lines: quality, cost, training and hyperparameters."""
    lines = [
        model.id,
        f"validation error {percent(model.validation.error)} %, cross-entropy {number(model.validation.cross_entropy)}",
        f"cost {number(model.cost)} s / 2000" if known(model.cost) else "cost not measured",
        f"{model.family}, {given(model.epochs)} epochs{', stopped early' if model.stopped_early else ''}"
        + ("" if model.kept else ", pruned before the selection"),
        *(f"{name} = {plain(value)}" for name, value in sorted(model.hyperparameters.items())),
    ]
    return "\n".join(lines)


def plain(value: object) -> str:
    """A hyperparameter's value, floats to three digits."""
    return number(value) if isinstance(value, float) else str(value)
