"""Pick the members of an ensemble for every budget of an EnsembleSelection."""

from __future__ import annotations

import argparse
import json
import sys
from bisect import bisect_right
from typing import Any

from ensemble_core.api.documents import load_documents
from ensemble_core.library.library import Library
from ensemble_core.report import MAX_BYTES, Report, add_report_arguments, run_reported
from ensemble_core.selection.result import BudgetResult, SelectionResult
from ensemble_core.selection.run import run_selection
from ensemble_core.selection.subject import open_sources

ROOM = MAX_BYTES - 4096  # for the summary in a report
TOLD = {"budgets": ("name", "validation", "heldout", "cost", "reason"), "members": ("library", "modelId", "weight")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_report_arguments(parser)
    parser.add_argument(
        "--poll", action="store_true", help="only tell the digests of the sources: whether there is something new"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.poll:
        return run_reported(arguments, "poll", lambda _: _poll(arguments))
    return run_reported(arguments, "select", lambda report: _select(arguments, report))


def _poll(arguments: argparse.Namespace) -> dict[str, Any]:
    documents = load_documents(arguments.spec)
    selection = documents.selection(arguments.name)
    where = f"{documents.file}: EnsembleSelection {selection.metadata.name}"
    stores = open_sources(where, documents.source_storages(selection))
    digests = [Library.open(store).digest() for store in stores]
    for store, digest in zip(stores, digests, strict=True):
        print(f"{digest}  {store.url}")
    return {"summary": {"sources": [{"digest": digest} for digest in digests]}}


def _select(arguments: argparse.Namespace, report: Report) -> dict[str, Any]:
    documents = load_documents(arguments.spec)
    selection = documents.selection(arguments.name)
    result, computed = run_selection(
        documents,
        selection,
        lambda stage, done, total: report.progress(stage=stage, done=done, total=total),
        lambda problem: print(f"{problem}; it is passed over", file=sys.stderr),
    )
    if not computed:
        print(f"selection {selection.metadata.name}: nothing has changed, selections/{result.digest}.json stays")
    for line in table(result):
        print(line)
    return {"digest": result.digest, "summary": summary(result)}


def summary(result: SelectionResult) -> dict[str, Any]:
    """The part of a result that a report has room for.

    Of many large ensembles it lists the first members alone, as many of each as there is room for and at least one;
    `memberCount` tells how many there are. If that is still too much, the front is left out.
    """
    content = result.document()
    longest = max(len(budget["members"]) for budget in content["budgets"])
    listed = bisect_right(range(1, longest + 1), ROOM, key=lambda most: _size(_summary(content, most)))
    found = _summary(content, max(listed, 1))
    return found if _size(found) <= ROOM else {**found, "front": []}


def _summary(content: dict[str, Any], most: int) -> dict[str, Any]:
    budgets = [
        {
            **_part(budget, "budgets"),
            "members": [_part(member, "members") for member in budget["members"][:most]],
            "memberCount": len(budget["members"]),
        }
        for budget in content["budgets"]
    ]
    front = [{**point, "members": len(point["members"])} for point in content["front"]]
    kept = {key: content[key] for key in ("cost", "combiner", "sources", "bestSingle")}
    return {**kept, "budgets": budgets, "front": front}


def _part(content: dict[str, Any], of: str) -> dict[str, Any]:
    return {key: content[key] for key in TOLD[of] if key in content}


def _size(content: dict[str, Any]) -> int:
    return len(json.dumps(content))


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
    count = len(budget.members)
    return (
        f"budget {budget.name}: {count} member{'s' * (count != 1)} ({', '.join(m.model_id for m in budget.members)}), "
        f"held-out cross-entropy {budget.heldout.cross_entropy:.4f}, error {100 * budget.heldout.error:.2f} %"
    )
