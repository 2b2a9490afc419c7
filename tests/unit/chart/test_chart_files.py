"""The chart's files and the pages about them agree with each other, and with the operator."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemble_core.api.documents import KINDS
from ensemble_operator import reasons
from ensemble_operator.metrics import Metrics

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts/ensemble-operator"
GUIDE = (ROOT / "docs/administrator-guide.md").read_text()
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DASHBOARD = json.loads((CHART / "dashboards/ensembles.json").read_text())
# Of Triton 2.51, as `/metrics` has them.
TRITON = {
    "nv_inference_compute_infer_duration_us",
    "nv_gpu_utilization",
}
AVERAGING = ROOT / "allocator/triton/averaging/triton/metrics.cc"


def leaves(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in schema["properties"].items():
        if "properties" in field:
            yield from leaves(field, f"{path}{name}.")
        else:
            yield f"{path}{name}", field


def default(path: str) -> Any:
    value = VALUES
    for name in path.split("."):
        value = value[name]
    return value


def paths(values: dict[str, Any], known: set[str], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        here = f"{path}{name}"
        if here in known or not isinstance(value, dict):
            yield here
        else:
            yield from paths(value, known, f"{here}.")


FIELDS = {path: field for path, field in leaves(SCHEMA) if path != "global"}


def test_schema_and_values_have_the_same_fields() -> None:
    assert list(paths(VALUES, set(FIELDS))) == list(FIELDS)


def test_every_object_of_the_schema_refuses_what_it_does_not_know() -> None:
    def objects(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield schema
        for field in schema["properties"].values():
            if "properties" in field:
                yield from objects(field)

    assert all(one["additionalProperties"] is False for one in objects(SCHEMA))


def test_the_operator_may_wait_for_the_api_server_for_an_hour() -> None:
    """Its health is first told when the API server has answered."""
    template = (CHART / "templates/deployment.yaml").read_text()
    found = re.findall(r"^( +)(\w+Probe):\n((?:\1 .*\n)+)", template, re.MULTILINE)
    startup = {name: yaml.safe_load(text) for _, name, text in found}["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 3600


def test_the_readme_has_a_row_for_every_value() -> None:
    rows = [f"| `{path}` | `{json.dumps(default(path))}` | {field['description']} |" for path, field in FIELDS.items()]
    table = "\n".join(["| Value | Default | Meaning |", "|---|---|---|", *rows])
    assert table in (CHART / "README.md").read_text(), f"README.md needs this table:\n{table}"


def test_the_chart_has_the_version_of_the_distribution() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)


# --- The dashboard ---------------------------------------------------------------------------------------------------


def expressions() -> list[str]:
    targets = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return [target["expr"] for target in targets]


def published() -> set[str]:
    """Names of the operator's own series, without those that a histogram has beside its buckets."""
    families = {family.name: family.type for family in Metrics().registry.collect()}
    suffix = {"counter": "_total", "histogram": "_bucket"}
    ours = {name: kind for name, kind in families.items() if name.startswith("ensemble_")}
    return {name + suffix.get(kind, "") for name, kind in ours.items()}


def test_the_dashboard_shows_all_that_the_operator_tells_and_nothing_unheard_of() -> None:
    used = set(re.findall(r"\b(?:ensemble|nv|process)_[a-z_]+\b", " ".join(expressions())))
    ours = {name for name in used if name.startswith("ensemble_")}
    assert ours >= published()
    assert ours - published() <= set(re.findall(r'"(ensemble_[a-z_]+)"', AVERAGING.read_text()))
    assert {name for name in used if name.startswith("nv_")} == TRITON
    assert {name for name in used if name.startswith("process_")} == {
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
    }


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["type"] == "row" or panel["description"]
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(identities) == len(set(identities))


# --- The administrator guide -----------------------------------------------------------------------------------------

REASONS = {name: value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)}


@pytest.mark.parametrize("reason", REASONS.values())
def test_the_guide_explains_every_reason(reason: str) -> None:
    assert re.search(rf"^\| `{reason}` \|.+\|.+\|", GUIDE, re.MULTILINE), f"{reason} is not in the guide's table"


def test_the_guide_explains_no_reason_that_there_is_not() -> None:
    table = GUIDE.partition("## Troubleshooting")[2]
    assert set(re.findall(r"^\| `([A-Z][A-Za-z]+)` \|", table, re.MULTILINE)) <= set(REASONS.values())


def test_the_guide_gives_a_reason_for_every_right() -> None:
    template = (CHART / "templates/rbac.yaml").read_text()
    rules = yaml.safe_load(template.partition('rules" -}}')[2].partition("{{- end")[0])
    granted = {(resource, ", ".join(rule["verbs"])) for rule in rules for resource in rule["resources"]}
    section = GUIDE.partition("\n## RBAC\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \| ([a-z, ]+) \| [^|]{10,} \|$", section, re.MULTILINE)
    told = {(resource, verbs) for names, verbs in rows for resource in re.findall(r"`([^`]+)`", names)}
    assert told == granted


# --- GitOps ----------------------------------------------------------------------------------------------------------


def test_the_health_check_is_the_same_for_all_kinds() -> None:
    given = yaml.safe_load((ROOT / "examples/gitops/argocd/health.yaml").read_text())["data"]
    text = (ROOT / "examples/gitops/argocd/health.lua").read_text()
    assert given == {f"resource.customizations.health.ensemble-operator.io_{kind}": text for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_documents_of_the_example_are_valid_in_a_cluster(kind: str) -> None:
    document = yaml.safe_load((ROOT / f"examples/gitops/digits/{kind.lower()}.yaml").read_text())
    KINDS[kind].model_validate(document)
    assert "path:" not in (ROOT / f"examples/gitops/digits/{kind.lower()}.yaml").read_text()
