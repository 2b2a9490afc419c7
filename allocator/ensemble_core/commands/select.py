"""Pick the members of an ensemble for every budget of an EnsembleSelection."""

from __future__ import annotations

import argparse
from typing import Any

from ensemble_core.api.documents import load_documents
from ensemble_core.report import Report, add_report_arguments, run_reported
from ensemble_core.selection.result import BudgetResult, SelectionResult
from ensemble_core.selection.run import run_selection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_report_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    return run_reported(arguments, "select", lambda report: _select(arguments, report))


def _select(arguments: argparse.Namespace, report: Report) -> dict[str, Any]:
    documents = load_documents(arguments.spec)
    selection = documents.selection(arguments.name)
    result, computed = run_selection(
        documents, selection, lambda stage, done, total: report.progress(stage=stage, done=done, total=total)
    )
    if not computed:
        print(f"selection {selection.metadata.name}: nothing has changed, selections/{result.digest}.json stays")
    for line in table(result):
        print(line)
    return {"digest": result.digest, "summary": summary(result)}


def summary(result: SelectionResult) -> dict[str, Any]:
    """The part of a result that a report holds: no paths, no models."""
    content = result.document()
    for budget in content["budgets"]:
        budget.pop("paths", None)
    return {key: content[key] for key in ("cost", "combiner", "sources", "bestSingle", "budgets", "front")}


def table(result: SelectionResult) -> list[str]:
    """The result as lines of text: one per budget, after the best single model."""
    single = result.best_single
    lines = [
        f"best single model {single.model_id}: held-out cross-entropy {single.heldout.cross_entropy:.4f}, "
        f"error {100 * single.heldout.error:.2f} %"
    ]
    left_out = [model.reason for model in result.models if model.reason]
    if left_out:
        lines.append(f"{len(left_out)} models do not take part, the first because {left_out[0]}")
    return [*lines, *map(_line, result.budgets)]


def _line(budget: BudgetResult) -> str:
    if budget.heldout is None:
        return f"budget {budget.name}: no ensemble, because {budget.reason}"
    return (
        f"budget {budget.name}: {len(budget.members)} members ({', '.join(m.model_id for m in budget.members)}), "
        f"held-out cross-entropy {budget.heldout.cross_entropy:.4f}, error {100 * budget.heldout.error:.2f} %"
    )
