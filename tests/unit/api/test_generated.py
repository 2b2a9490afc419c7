from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemble_core.api import generate
from ensemble_core.api.crd import custom_resource_definitions

CRDS = custom_resource_definitions()


def root(crd: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def walk(path: str, schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from walk(f"{path}.{name}", field)
    for inner in ("items", "additionalProperties"):
        if inner in schema:
            yield from walk(f"{path}[]", schema[inner])


def test_generated_files_are_those_of_the_models() -> None:
    assert generate.drift(generate.ROOT) == {}


def test_check_names_what_differs_and_generate_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"], tmp_path) == 1
    assert "crds/hposearches.ensemble-operator.io.yaml differs from the API models" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert generate.main([], tmp_path) == 0
    assert generate.main(["--check"], tmp_path) == 0
    page = tmp_path / "docs/reference/hposearch.md"
    page.write_text(page.read_text() + "by hand")
    capsys.readouterr()
    assert generate.main(["--check"], tmp_path) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("docs/reference/hposearch.md differs")


def test_braces_of_a_crd_are_text_in_the_chart() -> None:
    crd = {"kind": "CustomResourceDefinition", "metadata": {"name": "x"}, "spec": {"pattern": "a {{ b }} c\nspec:\n"}}
    text = generate.chart_template(crd)
    inside = text.partition("{{- if .Values.crds.install }}\n")[2].rpartition("{{- end }}\n")[0]
    plain = inside.replace('{{- include "ensemble-operator.labels" . | nindent 4 }}', "{}").replace('{{ "{{" }}', "{{")
    metadata = {"name": "x", "annotations": {"helm.sh/resource-policy": "keep"}, "labels": {}}
    assert yaml.safe_load(plain) == crd | {"metadata": metadata}
    assert inside.count("{{") == 3  # the labels, and one pair in its own braces


@pytest.mark.parametrize("name", CRDS)
def test_every_field_of_a_spec_has_a_bound_and_a_meaning(name: str) -> None:
    for path, schema in walk("spec", root(CRDS[name])["properties"]["spec"]):
        assert "description" in schema or path.endswith("[]"), path
        assert is_bounded(schema), path


def is_bounded(schema: dict[str, Any]) -> bool:
    """Whether the size of a value is limited: the server prices rules by it."""
    if "enum" in schema or schema.get("x-kubernetes-preserve-unknown-fields"):
        return True
    if schema.get("x-kubernetes-int-or-string"):
        return "maxLength" in schema
    needed = {
        "string": {"maxLength"},
        "array": {"maxItems"},
        "integer": {"minimum", "maximum"},
        "number": {"minimum", "maximum"},
        "boolean": set(),
        "object": {"maxProperties"} if "additionalProperties" in schema else {"properties"},
    }
    return needed[schema["type"]] <= schema.keys()


@pytest.mark.parametrize("name", CRDS)
def test_schemas_are_structural(name: str) -> None:
    for path, schema in walk("", root(CRDS[name])):
        assert not {"$ref", "anyOf", "oneOf", "allOf", "const", "title", "nullable"} & schema.keys(), path
        assert schema.get("additionalProperties") is not False, path
        assert ("type" in schema) != bool(schema.get("x-kubernetes-int-or-string")), path


@pytest.mark.parametrize("name", CRDS)
def test_resources_have_a_status_with_conditions_and_columns_for_people(name: str) -> None:
    version = CRDS[name]["spec"]["versions"][0]
    assert version["subresources"] == {"status": {}}
    conditions = root(CRDS[name])["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert "observedGeneration" in conditions["items"]["properties"]
    columns = [column["name"] for column in version["additionalPrinterColumns"]]
    assert columns[-4:] == ["Ready", "Degraded", "Reason", "Age"]
    assert len(columns) > 4


@pytest.mark.parametrize("name", CRDS)
def test_columns_show_fields_that_the_status_has(name: str) -> None:
    version = CRDS[name]["spec"]["versions"][0]
    paths = {path.replace("[]", "") for path, _ in walk(".status", root(CRDS[name])["properties"]["status"])}
    shown = [column["jsonPath"] for column in version["additionalPrinterColumns"]]
    assert {path for path in shown if path.startswith(".status") and "?" not in path} <= paths
