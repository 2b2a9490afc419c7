"""The short table that a run ends with: the best single model against each budget's ensemble."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ensemble_core.runner.facts import EnsembleFacts, RunFacts
from ensemble_core.runner.wording import UNKNOWN, limits, number, percent, verdict

STYLES = {"better": "green", "worse": "red", "mixed": "yellow", "equal": ""}


def summary_table(facts: RunFacts) -> Table:
    """One row for the best single model and one for each budget; held-out metrics, the winner said in words."""
    table = Table(title=Text(facts.title), box=SIMPLE_HEAD, title_justify="left")
    table.add_column("ensemble", overflow="fold", min_width=11)
    for name in ("models", "error %", "cross-\nentropy", "cost\ns / 2000", "samples/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("against the best single", overflow="fold", min_width=11)
    table.add_row(*_cells(facts.best_single, Text("")))
    for ensemble in facts.ensembles:
        table.add_row(*_cells(ensemble, _outcome(ensemble, facts.best_single)))
    return table


def notes(facts: RunFacts) -> str:
    """What stands below the table: on what was measured, and why a budget has no ensemble."""
    lines = [f"quality on {facts.samples['heldout']} held-out samples"] if "heldout" in facts.samples else []
    if facts.endpoint.heldout is not None:
        lines.append(f"what is served answers {facts.endpoint.combined}; the other ensembles' quality is of averages")
    return "\n".join([*lines, *(f"{each.name}: {each.reason}" for each in facts.ensembles if each.reason)])


def _cells(ensemble: EnsembleFacts, outcome: Text) -> tuple[Text, ...]:
    heldout = ensemble.heldout
    name = Text(ensemble.name)
    if ensemble.budget:
        name.append(f" ≤ {limits(ensemble.budget)}", style="dim")
    if ensemble.deployed:
        name.append(" (served)", style="bold")
    return (
        name,
        Text(str(len(ensemble.members)) if ensemble.members else UNKNOWN),
        Text(percent(heldout.error if heldout else None)),
        Text(number(heldout.cross_entropy if heldout else None)),
        Text(number(ensemble.cost)),
        Text(number(ensemble.throughput)),
        outcome,
    )


def _outcome(ensemble: EnsembleFacts, best: EnsembleFacts) -> Text:
    found = verdict(ensemble, best)
    if found is None:
        return Text("no ensemble", style="dim")
    return Text(found.text, style=STYLES[found.outcome])
