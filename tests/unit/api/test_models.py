"""The models against the table that the API server is asked too, and against themselves."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ensemble_core.api.crd import structural_schema
from ensemble_core.api.documents import KINDS

CASES = yaml.safe_load((Path(__file__).parents[2] / "api-cases.yaml").read_text())
Case = dict[str, Any]
Changed = Callable[[Case], dict[str, Any]]


def name_of(case: Case) -> str:
    return f"{case['base']}: {json.dumps(case['patch'])[:90]}"


@pytest.mark.parametrize("case", CASES["refused"], ids=name_of)
def test_refuses_and_blames_the_field(case: Case, changed: Changed, complaints: Callable[..., list[str]]) -> None:
    blamed = [line.split(": ")[1] for line in complaints(json.dumps(changed(case)))]
    assert case["at"] in blamed


@pytest.mark.parametrize("case", CASES["refused_by_commands"], ids=name_of)
def test_refuses_what_an_api_server_cannot_afford_to_look_for(
    case: Case, changed: Changed, complaints: Callable[..., list[str]]
) -> None:
    (line,) = complaints(json.dumps(changed(case)))
    assert line.split(": ", 1)[1] == f"{case['at']}: {case['told']}"


@pytest.mark.parametrize("case", [*CASES["accepted"], *CASES["refused_in_clusters"], *CASES["changes"]], ids=name_of)
def test_accepts(case: Case, changed: Changed, load: Callable[..., Any]) -> None:
    load(json.dumps(changed(case)))


@pytest.mark.parametrize("kind", KINDS)
def test_complete_samples_use_every_field(kind: str, samples: dict[str, dict[str, Any]]) -> None:
    alternatives = {
        "spec.library.storage.persistentVolumeClaim",
        "spec.dataset.builtin",
        "spec.dataset.procedural",
        "spec.dataset.arrays",
        "spec.dataset.storage.persistentVolumeClaim",
        "spec.library.persistentVolumeClaim",
        "spec.sources[].storage.s3",
        "spec.sources[].storage.credentialsSecretRef",
    }
    spec = structural_schema(KINDS[kind])["properties"]["spec"]
    sample = samples[f"{kind.lower()}-complete"]["spec"]
    unused = {path for path in unused_fields("spec", spec, [sample]) if not path.endswith(".path")}
    assert unused <= alternatives


def unused_fields(path: str, schema: dict[str, Any], values: list[Any]) -> Iterator[str]:
    """Fields that none of the objects has; below such a field nothing is looked at."""
    for name, field in schema.get("properties", {}).items():
        found = [value[name] for value in values if name in value]
        if not found:
            yield f"{path}.{name}"
        elif "items" in field:
            yield from unused_fields(f"{path}.{name}[]", field["items"], [item for items in found for item in items])
        else:
            yield from unused_fields(f"{path}.{name}", field, found)


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_what_the_minimal_sample_gets(kind: str, samples: dict[str, dict[str, Any]]) -> None:
    model = KINDS[kind].model_validate(samples[f"{kind.lower()}-minimal"])
    spec = model.document()["spec"]
    for name, field in structural_schema(KINDS[kind])["properties"]["spec"]["properties"].items():
        if "default" in field and name not in samples[f"{kind.lower()}-minimal"]["spec"]:
            assert without_empty_maps(spec[name]) == without_empty_maps(field["default"]), name


def without_empty_maps(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: v for k, v in ((k, without_empty_maps(v)) for k, v in value.items()) if v != {}}
    return [without_empty_maps(item) for item in value] if isinstance(value, list) else value


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a structural schema allows; the rules between fields are not looked at."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        # Quantities and listed values both take these.
        return st.integers(0, 99) | st.sampled_from(["1", "0.5", "250"])
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3)
    return {"object": objects, "array": arrays, "string": texts, "boolean": booleans}.get(schema["type"], numbers)(
        schema
    )


def objects(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "additionalProperties" in schema:
        return st.dictionaries(st.text("abc", min_size=1), values(schema["additionalProperties"]), max_size=2)
    fields = {name: values(field) for name, field in schema["properties"].items()}
    required = {name: fields.pop(name) for name in schema.get("required", ())}
    return st.fixed_dictionaries(required, optional=fields)


def arrays(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    return st.lists(values(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)


def texts(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True).filter(
            lambda text: schema.get("minLength", 0) <= len(text) <= schema["maxLength"]
        )
    return st.text(min_size=schema.get("minLength", 0), max_size=min(schema["maxLength"], 8))


def booleans(_: dict[str, Any]) -> st.SearchStrategy[Any]:
    return st.booleans()


def numbers(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    low, high = schema["minimum"], schema["maximum"]
    if schema["type"] == "integer":
        return st.integers(low, high)
    return st.floats(low, high, exclude_min=schema.get("exclusiveMinimum", False), allow_subnormal=False)


FIELDS = {
    kind: {name: values(field) for name, field in structural_schema(model)["properties"]["spec"]["properties"].items()}
    for kind, model in KINDS.items()
}


@st.composite
def altered(draw: st.DrawFn, kind: str, sample: dict[str, Any]) -> dict[str, Any]:
    """A sample with a few fields of its spec drawn anew from the schema."""
    document = copy.deepcopy(sample)
    for name in draw(st.sets(st.sampled_from(sorted(FIELDS[kind])), min_size=1, max_size=3)):
        document["spec"][name] = draw(FIELDS[kind][name])
    return document


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", ["minimal", "complete"])
@settings(max_examples=100, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_document_is_refused_by_a_rule_or_survives_the_round_trip(
    data: st.DataObject, kind: str, size: str, samples: dict[str, dict[str, Any]]
) -> None:
    document = data.draw(altered(kind, samples[f"{kind.lower()}-{size}"]))
    model = KINDS[kind]
    try:
        parsed = model.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        kinds = {item["type"] for item in error.errors()}
    else:
        kinds = {"rule"}
        written = parsed.document()
        again = model.model_validate_json(json.dumps(written), strict=True)
        assert again == parsed
        assert again.document() == written
    # A list whose items break rules is short of valid items too.
    assert {"rule"} <= kinds <= {"rule", "too_short"}
