"""Five seeds of the digits example: each budget's ensemble against the best single model on held-out data, win or lose.

python benchmarks/seeds.py [--seeds 5] [--output runs/seeds]. Seeds change the split, the proposals and the training.
A seed that was run before is read, not run again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from ensemble_core.api.documents import Documents, load_documents
from ensemble_core.runner.relocate import dump, relocate
from ensemble_core.selection.result import BudgetResult, SelectionResult, Single
from ensemble_core.selection.run import find_result
from results import table, versions, write_section

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/seeds"))
    arguments = parser.parse_args()
    results = {seed: run(seed, arguments.output.resolve() / str(seed)) for seed in range(arguments.seeds)}
    rows = [row for seed, result in results.items() for row in rows_of(seed, result)]
    wins = {metric: sum(beats(result, metric) for result in results.values()) for metric in ("cross_entropy", "error")}
    text = (
        f"Against the best single model chosen by validation, the largest budget's ensemble has the lower held-out "
        f"cross-entropy in {wins['cross_entropy']} of {len(results)} seeds, and the lower error in {wins['error']}. "
        f"{versions('torch', 'optuna', 'ray', 'onnxruntime')}.\n\n"
    )
    head = ["seed", "ensemble", "members", "held-out cross-entropy", "error %", "macro F1", "cost, s / 2000"]
    text += table(head, rows)
    print(text)
    write_section("Ensembles against the best single model, five seeds", "python benchmarks/seeds.py", text)


def run(seed: int, output: Path) -> SelectionResult:
    """Search, profile and select with a seed."""
    output.mkdir(parents=True, exist_ok=True)
    documents = seeded(relocate(load_documents(EXAMPLE), EXAMPLE.parent.resolve(), output), seed)
    file = output / "documents.yaml"
    file.write_text(dump(documents, output))
    for verb in ("train", "profile", "select"):
        subprocess.run([sys.executable, "-m", "ensemble_core.cli", verb, "--spec", str(file)], check=True)
    documents = load_documents(file)
    result = find_result(documents, documents.selection())
    assert result is not None
    return result


def seeded(documents: Documents, seed: int) -> Documents:
    """The documents with the seed in the split and in the search."""
    (name, search), *_ = documents.searches.items()
    dataset = search.spec.dataset
    split = dataset.split.model_copy(update={"seed": seed})
    spec = search.spec.model_copy(update={"seed": seed, "dataset": dataset.model_copy(update={"split": split})})
    documents.searches[name] = search.model_copy(update={"spec": spec})
    return documents


def rows_of(seed: int, result: SelectionResult) -> list[list[str]]:
    rows = [[str(seed), "best single", result.best_single.model_id, *figures(result.best_single)]]
    for budget in result.budgets:
        members = ", ".join(member.model_id for member in budget.members) or budget.reason or ""
        rows.append([str(seed), budget.name, members, *figures(budget)])
    return rows


def figures(ensemble: Single | BudgetResult) -> list[str]:
    heldout, cost = ensemble.heldout, ensemble.cost
    if heldout is None or cost is None or cost.inference_time_seconds is None:
        return ["", "", "", ""]
    return [
        f"{heldout.cross_entropy:.4f}",
        f"{100 * heldout.error:.2f}",
        f"{heldout.macro_f1:.4f}",
        f"{cost.inference_time_seconds:.3f}",
    ]


def beats(result: SelectionResult, metric: str) -> bool:
    """Whether the largest budget's ensemble is better than the best single model on held-out data."""
    heldout = result.budgets[-1].heldout
    return heldout is not None and getattr(heldout, metric) < getattr(result.best_single.heldout, metric)


if __name__ == "__main__":
    main()
