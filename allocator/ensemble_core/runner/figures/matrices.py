"""The allocation matrix with its batch sizes, and the throughput of every matrix that was benchmarked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ensemble_core.runner.facts import MatrixFacts, RunFacts
from ensemble_core.runner.figures import charts
from ensemble_core.runner.figures.markup import Html, el
from ensemble_core.runner.wording import THIN, given, number, short_names

ROUTING = {"pull": "pulled", "weights": "routed by shares"}
CHANGES = 3  # named of a matrix; more are counted


def matrix_table(facts: RunFacts) -> Html:
    """The best matrix, devices down and members across, darker for a larger batch."""
    if not facts.matrices:
        return el("p", "No matrix was benchmarked.", class_="empty")
    matrix = _best(facts)
    names = _names(facts)
    largest = max((size for row in matrix.batch_sizes for size in row), default=1) or 1
    head = el("tr", el("th", "device", scope="col"), *(_member(member, names) for member in matrix.members))
    rows = [
        el("tr", el("th", device, scope="row"), *(_cell(size, largest) for size in sizes))
        for device, sizes in zip(matrix.devices, matrix.batch_sizes, strict=True)
    ]
    note = el("p", "Batch size of each worker; a dot where a member is not on a device.", class_="note")
    table = el("table", el("thead", head), el("tbody", *rows), class_="heat")
    return el("div", note, el("div", table, class_="scroll"))


def _best(facts: RunFacts) -> MatrixFacts:
    return facts.matrices[facts.best_matrix if 0 <= facts.best_matrix < len(facts.matrices) else 0]


def _names(facts: RunFacts) -> dict[str, str]:
    members = [member for matrix in facts.matrices for member in matrix.members]
    return short_names([model.id for model in facts.models] + members)


def _member(member: str, names: Mapping[str, str]) -> Html:
    return el("th", names[member], scope="col", title=member, data_k=charts.key("model", member))


def _cell(size: int, largest: int) -> Html:
    if size == 0:
        return el("td", "·", class_="absent")
    heat = math.log2(size + 1) / math.log2(largest + 1)
    return el("td", str(size), style=f"--heat:{100 * heat:.0f}%")


def throughput_table(facts: RunFacts) -> Html:
    """Every benchmarked matrix in order: what it changes of the best before it, its throughput, spread and bar."""
    if not facts.matrices:
        return Html("")
    names = _names(facts)
    most = max((_upper(matrix) for matrix in facts.matrices), default=0.0) or 1.0
    rows, before = [], facts.matrices[0]
    for index, matrix in enumerate(facts.matrices):
        change = "start" if index == 0 else _change(before, matrix, names)
        rows.append(_row(index, matrix, change, most, index == facts.best_matrix))
        before = matrix if _throughput(matrix) > _throughput(before) else before
    texts = ("order", "change of the best so far", "", "samples/s")
    head = el("tr", *(el("th", text, scope="col") for text in texts))
    table = el("table", el("thead", head), el("tbody", *rows), class_="bars")
    return el("div", table, class_="scroll")


def _row(index: int, matrix: MatrixFacts, change: str, most: float, best: bool) -> Html:
    rate = _throughput(matrix)
    spread = given(float(f"{100 * _spread(matrix):.2g}"))
    value = f"{number(rate)} ±{THIN}{spread}{THIN}%" if rate else "does not run"
    return el(
        "tr",
        el("th", str(index + 1), scope="row"),
        el("td", change, el("b", " ★ best") if best else "", title=_full(matrix)),
        el("td", _bar(matrix, most), class_="bar"),
        el("td", value, class_="n"),
        class_="best" if best else None,
    )


def _bar(matrix: MatrixFacts, most: float) -> Html:
    rate, spread = _throughput(matrix), _spread(matrix)
    low, high = (100 * rate * share / most for share in (max(0.0, 1 - spread), 1 + spread))
    end = 100 * rate / most
    parts = [el("rect", class_="amount", x="0%", y=3, width=f"{end:.2f}%", height=14)]
    if rate * spread > 0:
        parts += [
            el("line", class_="error", x1=f"{low:.2f}%", x2=f"{high:.2f}%", y1=10, y2=10),
            *(el("line", class_="error", x1=f"{at:.2f}%", x2=f"{at:.2f}%", y1=6, y2=14) for at in (low, high)),
        ]
    return el("svg", *parts, width="100%", height=20, role="img", aria_label=f"{number(rate)} samples per second")


def _throughput(matrix: MatrixFacts) -> float:
    return matrix.throughput if math.isfinite(matrix.throughput) and matrix.throughput > 0 else 0.0


def _spread(matrix: MatrixFacts) -> float:
    return matrix.spread if math.isfinite(matrix.spread) and matrix.spread > 0 else 0.0


def _upper(matrix: MatrixFacts) -> float:
    return _throughput(matrix) * (1 + _spread(matrix))


def _change(before: MatrixFacts, after: MatrixFacts, names: Mapping[str, str]) -> str:
    """`gpu0: 0012 8→16`, one for each element that differs."""
    if before.devices != after.devices or before.members != after.members:
        return "other devices or members"
    changes = [
        f"{device}: {names[member]} {old or 'absent'} → {new or 'absent'}"
        for device, olds, news in zip(after.devices, before.batch_sizes, after.batch_sizes, strict=True)
        for member, old, new in zip(after.members, olds, news, strict=True)
        if old != new
    ]
    if before.routing != after.routing:
        changes.append(ROUTING[after.routing])
    more = f" and {len(changes) - CHANGES} more" if len(changes) > CHANGES else ""
    return ("; ".join(changes[:CHANGES]) + more) or "the same again"


def _full(matrix: MatrixFacts) -> str:
    """Every worker, for hovering."""
    return "\n".join(
        f"{device}: " + (", ".join(_workers(matrix.members, sizes)) or "nothing")
        for device, sizes in zip(matrix.devices, matrix.batch_sizes, strict=True)
    )


def _workers(members: Sequence[str], sizes: Sequence[int]) -> list[str]:
    return [f"{member} × {size}" for member, size in zip(members, sizes, strict=True) if size]
