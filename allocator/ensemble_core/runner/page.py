"""The report of a run: one self-contained HTML page, made from facts alone."""

from __future__ import annotations

from datetime import UTC, datetime

from ensemble_core.profiling.half import words
from ensemble_core.runner import snippets
from ensemble_core.runner.details import comparison, details
from ensemble_core.runner.facts import EnsembleFacts, RunFacts
from ensemble_core.runner.figures.front import front_figure
from ensemble_core.runner.figures.library import library_figure
from ensemble_core.runner.figures.markup import Html, el, joined
from ensemble_core.runner.figures.matrices import matrix_table, throughput_table
from ensemble_core.runner.figures.paths import path_figures
from ensemble_core.runner.figures.timeline import timeline_figure
from ensemble_core.runner.style import SCRIPT, STYLE
from ensemble_core.runner.wording import THIN, counted, duration, headline_ensemble, number, percent, verdict


def render_page(facts: RunFacts) -> str:
    """The page as text, pure and deterministic; it loads nothing and works without scripts, dark and on paper."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", facts.title),
        el("style", Html(STYLE)),
    )
    body = el(
        "body",
        _header(facts),
        el("main", *_sections(facts)),
        el("script", Html(SCRIPT)),
    )
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"


def _header(facts: RunFacts) -> Html:
    when = datetime.fromtimestamp(facts.finished_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    failed = f", {counted(facts.failed_trials, 'failed trial')}" if facts.failed_trials else ""
    models, where = (
        f"{counted(len(facts.models), 'model')}{failed}",
        f"last run {duration(facts.seconds)} on {facts.machine}",
    )
    return el("header", el("h1", facts.title), el("p", f"{facts.dataset} · {models} · {where} · {when}", class_="sub"))


def _sections(facts: RunFacts) -> list[Html]:
    busy = facts.occupancy
    occupancy = "" if busy is None else f" The slots were busy {number(100 * busy)}{THIN}% of the time."
    return [
        _achieved(facts),
        el(
            "div",
            _section(
                "library",
                "The library",
                "Every model of the library: the further left, the cheaper; the further down, the fewer errors. "
                "Rings mark the members of each budget’s ensemble.",
                library_figure(facts),
            ),
            _section(
                "front",
                "The front",
                "Ensembles that no other one found beats in both cost and cross-entropy, and what each budget bought.",
                front_figure(facts),
            ),
            class_="pair",
        ),
        _section(
            "paths",
            "How the members were picked",
            "SMOBF adds one model after another; each line is one weight of cost against quality, the thick one won.",
            el("div", path_figures(facts), class_="panels"),
        ),
        _section(
            "timeline",
            "The trials",
            f"What every slot was busy with; the numbers are trials.{occupancy}",
            timeline_figure(facts),
        ),
        _section(
            "matrix",
            "The allocation",
            "Which member runs on which device, and the throughput of every matrix that was benchmarked, in order. "
            "It is that of all devices together, with requests of one segment; a cost is that of one core or GPU, each "
            "model alone.",
            el("div", matrix_table(facts), throughput_table(facts), class_="stack"),
        ),
        _endpoint(facts),
        _section(
            "details", "Details", "Members with their weights, all models, versions, and the documents.", details(facts)
        ),
    ]


def _section(name: str, heading: str, sentence: str, *content: Html) -> Html:
    return el("section", el("h2", heading), el("p", sentence, class_="lead"), *content, id=name)


def _achieved(facts: RunFacts) -> Html:
    ensemble = headline_ensemble(facts)
    return _section(
        "achieved",
        "What was achieved",
        _sentence(facts, ensemble),
        el("div", *_figures(facts, ensemble), class_="cards"),
        comparison(facts),
    )


def _sentence(facts: RunFacts, ensemble: EnsembleFacts | None) -> str:
    """Win or lose, in one sentence; how many samples the difference is says how much it can mean."""
    best = facts.best_single
    if ensemble is None or ensemble.heldout is None:
        return "No budget has an ensemble; the table says why."
    if best.heldout is None:
        return f"The ensemble “{ensemble.name}” has {counted(len(ensemble.members), 'member')}."
    found, samples = verdict(ensemble, best), facts.samples.get("heldout", 0)
    fewer = round((best.heldout.error - ensemble.heldout.error) * samples)
    errors = f"{counted(abs(fewer), 'error')} {'fewer' if fewer > 0 else 'more'}" if fewer else "as many errors"
    outcome = {
        "better": "beats the best single model",
        "worse": "does not beat the best single model",
        "mixed": "is neither better nor worse than the best single model in both metrics",
        "equal": "is as good as the best single model",
    }[found.outcome if found else "equal"]
    return (
        f"The ensemble “{ensemble.name}” of {counted(len(ensemble.members), 'model')} {outcome} on held-out data: "
        f"{errors} on {counted(samples, 'sample')}, "
        f"cross-entropy {number(ensemble.heldout.cross_entropy)} against {number(best.heldout.cross_entropy)}."
    )


def _figures(facts: RunFacts, ensemble: EnsembleFacts | None) -> list[Html]:
    best, endpoint = facts.best_single, facts.endpoint
    of = ensemble or best
    error = percent(of.heldout.error if of.heldout else None)
    single = percent(best.heldout.error if best.heldout else None)
    good = endpoint.problem is None
    return [
        _card(
            "Held-out error",
            single if ensemble else "",
            error,
            "%",
            f"best single model → “{of.name}”" if ensemble else best.name,
        ),
        _card(
            "Cost",
            number(best.cost) if ensemble else "",
            number(of.cost),
            "s",
            "for 2000 samples, members one after the other",
        ),
        _card(
            "Throughput",
            "",
            number(of.throughput),
            "samples/s",
            f"measured on the server; the best single model {number(best.throughput)}"
            if ensemble
            else "measured on the server",
        ),
        _card(
            "Endpoint",
            "",
            f"{'✓' if good else '✗'} {number(endpoint.largest_difference)}",
            "",
            f"largest difference from {endpoint.combined} by stored predictions, "
            f"of {counted(endpoint.samples, 'held-out sample')}"
            + (f"; in half precision {words(endpoint.accuracy, 'held-out')}" if endpoint.accuracy and good else "")
            + ("" if good else f": {endpoint.problem}"),
            "" if good else "bad",
        ),
    ]


def _card(name: str, before: str, value: str, unit: str, note: str, class_: str = "") -> Html:
    earlier = el("span", f"{before} → ", class_="before") if before else ""
    amount = el(
        "dd", earlier, el("strong", value), el("span", f" {unit}", class_="unit") if unit else "", class_="value"
    )
    return el("dl", el("dt", name), amount, el("dd", note, class_="note"), class_=f"card {class_}".strip())


def _endpoint(facts: RunFacts) -> Html:
    endpoint = facts.endpoint
    shape = " × ".join(str(size) for size in endpoint.input_shape)
    takes = f"{endpoint.input_type}, N × {shape}; answers: FP32, N × {len(endpoint.classes)} probabilities"
    parts = (
        ("curl", snippets.curl(endpoint)),
        ("ensemble", snippets.predict(endpoint)),
        ("Python", snippets.python(endpoint)),
    )
    blocks = (
        el("div", el("h3", name), el("pre", el("code", text), class_="code", tabindex="0"), class_="snippet")
        for name, text in parts
    )
    classes = el("p", "Classes in order: ", el("span", ", ".join(endpoint.classes)), class_="classes")
    return _section(
        "endpoint",
        "How to ask the endpoint",
        f"The model “{endpoint.model}” takes raw samples ({takes}), HTTP on {endpoint.http}, gRPC on {endpoint.grpc}, "
        "while it is served: `ensemble serve --spec documents.yaml` in the run's folder, or `ensemble run … --serve`.",
        joined(blocks),
        classes,
    )
