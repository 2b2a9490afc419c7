"""The tables at the end of the page: members, the whole library, versions and the documents."""

from __future__ import annotations

from collections.abc import Sequence

from ensemble_core.runner.facts import EnsembleFacts, ModelFacts, RunFacts
from ensemble_core.runner.figures import charts
from ensemble_core.runner.figures.library import plain
from ensemble_core.runner.figures.markup import Html, el, joined
from ensemble_core.runner.wording import UNKNOWN, counted, given, limits, number, percent, verdict, whole

OUTCOMES = {"better": "▲", "worse": "▼", "mixed": "◆", "equal": "="}


def columns(*names: str) -> Html:
    """The head of a table; a name that starts with `#` is of a column of numbers."""
    classes = ("n" if name.startswith("#") else None for name in names)
    cells = (
        el("th", name.lstrip("#"), scope="col", class_=class_) for name, class_ in zip(names, classes, strict=True)
    )
    return el("thead", el("tr", *cells))


def amount(text: str, label: str | None = None) -> Html:
    """A number's cell; the label stands before it where a small screen shows rows as blocks."""
    return el("td", text, class_="n", data_label=label)


def comparison(facts: RunFacts) -> Html:
    """The best single model, then every budget: held-out metrics and who wins, or why there is no ensemble."""
    rows = [_row(facts, facts.best_single, None)]
    rows += [_row(facts, ensemble, index) for index, ensemble in enumerate(facts.ensembles)]
    head = columns(
        "ensemble", "budget", "#members", "#held-out error, %", "#held-out cross-entropy", "#cost, s / 2000",
        "#measured samples/s", "against the best single",
    )  # fmt: skip
    return el("div", el("table", head, el("tbody", *rows), class_="comparison"), class_="scroll")


def _row(facts: RunFacts, ensemble: EnsembleFacts, index: int | None) -> Html:
    sign = charts.star(12, 10, 8.5) if index is None else charts.shape(index, 12, 10, 6, f"ring {charts.hue(index)}")
    name = el(
        "th",
        el("svg", sign, viewBox="0 0 24 20", width=24, height=20, aria_hidden="true"),
        ensemble.name,
        el("span", "served", class_="badge") if ensemble.deployed else "",
        scope="row",
    )
    if ensemble.heldout is None:
        return el(
            "tr",
            name,
            el("td", limits(ensemble.budget), data_label="budget"),
            el("td", ensemble.reason or "No ensemble.", colspan=6, class_="reason"),
        )
    found = verdict(ensemble, facts.best_single) if index is not None else None
    text = f"{OUTCOMES[found.outcome]} {found.text}" if found else ""
    outcome = el(
        "td", text, class_=found.outcome if found else None, data_label="against the best single" if found else None
    )
    return el(
        "tr",
        name,
        el("td", limits(ensemble.budget), data_label="budget"),
        amount(str(len(ensemble.members)), "members"),
        amount(percent(ensemble.heldout.error), "held-out error, %"),
        amount(number(ensemble.heldout.cross_entropy), "held-out cross-entropy"),
        amount(number(ensemble.cost), "cost, s / 2000"),
        amount(number(ensemble.throughput), "measured samples/s"),
        outcome,
        data_k=charts.key("budget", ensemble.name) if index is not None else None,
    )


def details(facts: RunFacts) -> Html:
    """Members, models, versions and documents, folded."""
    with_members = [ensemble for ensemble in facts.ensembles if ensemble.members]
    return joined(
        [
            *(_fold(f"Members of “{e.name}” ({len(e.members)})", _members(e, facts)) for e in with_members),
            _fold(f"The library: {counted(len(facts.models), 'model')}", _models(facts.models)),
            _fold("Machine and versions", _versions(facts)),
            _fold("The documents that made it", el("pre", facts.documents, class_="code", tabindex="0")),
        ]
    )


def _fold(summary: str, content: Html) -> Html:
    return el("details", el("summary", summary), content)


def _members(ensemble: EnsembleFacts, facts: RunFacts) -> Html:
    models = {model.id: model for model in facts.models}
    rows = [
        el(
            "tr",
            el("th", member, scope="row"),
            amount(number(weight)),
            *_metrics(models.get(member)),
            data_k=charts.key("model", member),
        )
        for member, weight in zip(ensemble.members, ensemble.weights, strict=True)
    ]
    return _table(columns("model", "#weight", *_METRICS), rows)


_METRICS = (
    "#validation error, %", "#cross-entropy", "#macro F1", "#top-5 error, %", "#cost, s / 2000", "#parameters",
    "#epochs", "hyperparameters",
)  # fmt: skip


def _metrics(model: ModelFacts | None) -> tuple[Html, ...]:
    if model is None:
        return (*(amount(UNKNOWN) for _ in _METRICS[:-1]), el("td", ""))
    metrics = model.validation
    named = (f"{name} {plain(value)}" for name, value in sorted(model.hyperparameters.items()))
    settings = ", ".join([model.family, *named])
    return (
        amount(percent(metrics.error)),
        amount(number(metrics.cross_entropy)),
        amount(number(metrics.macro_f1)),
        amount(percent(metrics.top5_error)),
        amount(number(model.cost)),
        amount(whole(model.parameters)),
        amount(given(model.epochs)),
        el("td", settings, class_="settings"),
    )


def _models(models: Sequence[ModelFacts]) -> Html:
    ordered = sorted(models, key=lambda model: (model.validation.cross_entropy, model.id))
    rows = [
        el(
            "tr",
            el("th", model.id, scope="row"),
            el("td", _state(model)),
            *_metrics(model),
            data_k=charts.key("model", model.id),
        )
        for model in ordered
    ]
    return _table(columns("model", "state", *_METRICS), rows)


def _state(model: ModelFacts) -> str:
    states = (["stopped early"] if model.stopped_early else []) + ([] if model.kept else ["pruned"])
    return ", ".join(states) or "complete"


def _versions(facts: RunFacts) -> Html:
    entries = {"machine": facts.machine, "dataset": facts.dataset}
    entries |= {f"samples, {split}": whole(count) for split, count in sorted(facts.samples.items())}
    entries |= dict(sorted(facts.versions.items()))
    rows = [el("tr", el("th", name, scope="row"), el("td", text)) for name, text in entries.items()]
    return _table(None, rows)


def _table(head: Html | None, rows: Sequence[Html]) -> Html:
    table = el("table", head or Html(""), el("tbody", *rows), class_="small")
    return el("div", table, class_="scroll")
