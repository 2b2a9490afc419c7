"""CustomResourceDefinitions from the API models: schemas as Kubernetes takes them, rules, columns and status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticUndefined, core_schema

from ensemble_core.api.common import GROUP, VERSION, Status
from ensemble_core.api.ensembledeployment import EnsembleDeployment, EnsembleDeploymentStatus
from ensemble_core.api.ensembleselection import EnsembleSelection, EnsembleSelectionStatus
from ensemble_core.api.hposearch import HPOSearch, HPOSearchStatus
from ensemble_core.frozen import Frozen

Schema = dict[str, Any]

RESOURCES: tuple[tuple[type[HPOSearch | EnsembleSelection | EnsembleDeployment], type[Status], str, str], ...] = (
    (HPOSearch, HPOSearchStatus, "hposearches", "hpo"),
    (EnsembleSelection, EnsembleSelectionStatus, "ensembleselections", "ensel"),
    (EnsembleDeployment, EnsembleDeploymentStatus, "ensembledeployments", "endep"),
)

# Of JSON Schema, what a structural schema may say, beside properties, items and defaults.
_KEPT = (
    "description",
    "type",
    "format",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "minimum",
    "maximum",
    "required",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
)


def custom_resource_definitions() -> dict[str, dict[str, Any]]:
    """The manifests by file name, `hposearches.ensemble-operator.io.yaml` and so on."""
    manifests = [_manifest(*resource) for resource in RESOURCES]
    return {f"{manifest['metadata']['name']}.yaml": manifest for manifest in manifests}


def structural_schema(model: type[BaseModel]) -> Schema:
    """A model as a structural schema: no references, no nulls, defaults of every level at that level."""
    schema = model.model_json_schema(by_alias=True, schema_generator=_WithDefaults)
    return _structural(schema, schema.get("$defs", {}))


class _WithDefaults(GenerateJsonSchema):
    """Default factories count too. Defaults are complete: the server checks them against the rules as they stand."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        factory: Any = schema.get("default_factory")
        default = factory() if factory else schema.get("default", PydanticUndefined)
        return _without_empty_maps(default.document()) if isinstance(default, Frozen) else default


def _without_empty_maps(value: dict[str, Any]) -> dict[str, Any]:
    """No labels and absent labels are the same."""
    filled = {key: _without_empty_maps(item) if isinstance(item, dict) else item for key, item in value.items()}
    return {key: item for key, item in filled.items() if item != {}}


def _structural(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    merged = _resolved(schema, definitions)
    if "const" in merged:
        merged["enum"] = [merged["const"]]
    for bound in ("Minimum", "Maximum"):
        if f"exclusive{bound}" in merged:
            merged[bound.lower()] = merged[f"exclusive{bound}"]
    result = {key: merged[key] for key in _KEPT if key in merged}
    for bound in ("Minimum", "Maximum"):
        if f"exclusive{bound}" in merged:
            result[f"exclusive{bound}"] = True
    if "properties" in merged:
        result["properties"] = {name: _structural(value, definitions) for name, value in merged["properties"].items()}
    if isinstance(merged.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(merged["additionalProperties"], definitions)
    if "items" in merged:
        result["items"] = _structural(merged["items"], definitions)
    if merged.get("default") not in (None, {}):
        result["default"] = merged["default"]
    return result


def _resolved(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    """Follows a reference and takes null out of a union; what is said nearer to the field wins."""
    near = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf")}
    if "$ref" in schema:
        return _resolved(definitions[schema["$ref"].rpartition("/")[2]], definitions) | near
    if "anyOf" in schema:
        (only,) = (option for option in schema["anyOf"] if option.get("type") != "null")
        return _resolved(only, definitions) | near
    return near


def _manifest(
    model: type[HPOSearch | EnsembleSelection | EnsembleDeployment], status: type[Status], plural: str, short: str
) -> dict[str, Any]:
    kind = model.__name__
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["ensembles"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [*model.columns, *_COMMON_COLUMNS],
                    "schema": {"openAPIV3Schema": _root(model, status)},
                }
            ],
        },
    }


_COMMON_COLUMNS = (
    {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
    {"name": "Degraded", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Degraded")].status'},
    {"name": "Reason", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].reason'},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
)


def _root(model: type[BaseModel], status: type[Status]) -> Schema:
    schema = structural_schema(model)
    name = schema["properties"]["metadata"]["properties"]["name"]
    return {
        "description": schema["description"],
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            # All that a schema may say of metadata.
            "metadata": {
                "type": "object",
                "properties": {"name": {key: name[key] for key in ("type", "pattern", "maxLength")}},
            },
            "spec": schema["properties"]["spec"],
            "status": structural_schema(status),
        },
    }
