"""JSON schemas of Kubernetes' APIs, closed: a field that they do not know is an error, not dropped in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator


def closed(schema: Any) -> Any:
    """The schema without fields beside those that it names."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    result = {
        key: {name: closed(inner) for name, inner in value.items()} if key == "properties" else closed(value)
        for key, value in schema.items()
    }
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if "properties" in schema and not is_open:
        result["additionalProperties"] = False
    return result


def errors(schema: Mapping[str, Any], content: Any) -> list[str]:
    """What is wrong with a manifest, one line each."""
    found = Draft202012Validator(schema).iter_errors(content)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in found]


def builtin(document: Mapping[str, Any], definition: str) -> dict[str, Any]:
    """The schema of a built-in kind out of an OpenAPI document of the API server."""
    schemas = document["components"]["schemas"]
    return {"$ref": f"#/components/schemas/{definition}", "components": {"schemas": _known(schemas)}}


def _known(schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Quantities may be numbers and ports may be names, which JSON Schema has to be told."""
    loose = {"io.k8s.apimachinery.pkg.api.resource.Quantity", "io.k8s.apimachinery.pkg.util.intstr.IntOrString"}
    return {name: {"type": ["string", "integer"]} if name in loose else closed(s) for name, s in schemas.items()}
