"""The CRDs on a real API server: established, with defaults, and refusing just what `ensemble validate` refuses."""

from __future__ import annotations

import copy
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemble_core.api.crd import custom_resource_definitions
from ensemble_core.api.documents import KINDS

pytestmark = pytest.mark.apiserver

ROOT = Path(__file__).parents[2]
CASES = yaml.safe_load((ROOT / "tests/api-cases.yaml").read_text())
PLURALS = {m["spec"]["names"]["kind"]: m["spec"]["names"]["plural"] for m in custom_resource_definitions().values()}
SAMPLES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds/samples").glob("*.yaml"))}
ESTABLISHED = 60.0


def merged(document: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = copy.copy(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        result[key] = merged(result.get(key), value)
    return {key: value for key, value in result.items() if value is not None}


def changed(case: dict[str, Any]) -> dict[str, Any]:
    return merged(SAMPLES[case["base"]], case["patch"])


def name_of(case: dict[str, Any]) -> str:
    return f"{case['base']}: {json.dumps(case['patch'])[:90]}"


def collection(document: dict[str, Any]) -> str:
    return f"/apis/ensemble-operator.io/v1alpha1/namespaces/default/{PLURALS[document['kind']]}"


def create(server: Any, document: dict[str, Any], options: str = "dryRun=All") -> tuple[int, dict[str, Any]]:
    return server.request("POST", f"{collection(document)}?fieldValidation=Strict&{options}", document)


def blamed(status: dict[str, Any]) -> set[str]:
    """The fields that a refusal names."""
    causes = {cause["field"] for cause in status.get("details", {}).get("causes", ()) if "field" in cause}
    return causes | set(re.findall(r'unknown field "([^"]+)"', status["message"]))


@pytest.fixture(scope="module")
def server(api_server: Any) -> Any:
    """The API server with our CRDs established and a namespace to work in."""
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        manifest = yaml.safe_load(path.read_text())
        code, answer = api_server.request(
            "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?fieldValidation=Strict", manifest
        )
        assert code == 201, answer["message"]
        wait_until_established(api_server, manifest["metadata"]["name"])
    api_server.request("POST", "/api/v1/namespaces", {"metadata": {"name": "default"}})
    return api_server


def wait_until_established(server: Any, name: str) -> None:
    end = time.monotonic() + ESTABLISHED
    while time.monotonic() < end:
        _, crd = server.request("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
        conditions = {c["type"]: c for c in crd.get("status", {}).get("conditions") or ()}
        assert "NonStructuralSchema" not in conditions, conditions["NonStructuralSchema"]["message"]
        group = "/apis/ensemble-operator.io/v1alpha1"
        if conditions.get("Established", {}).get("status") == "True" and served(server, group, name.split(".")[0]):
            return
        time.sleep(0.1)
    pytest.fail(f"{name} was not established in {ESTABLISHED:g} s")


def served(server: Any, group: str, plural: str) -> bool:
    code, resources = server.request("GET", group)
    return code == 200 and plural in {resource["name"] for resource in resources["resources"]}


@pytest.mark.parametrize("sample", SAMPLES)
def test_samples_are_taken_and_get_the_models_defaults(server: Any, sample: str) -> None:
    document = SAMPLES[sample]
    code, answer = create(server, document)
    assert code == 201, answer["message"]
    model = KINDS[document["kind"]]
    ours = model.model_validate(document).document()["spec"]
    assert without_empty_maps(answer["spec"]) == without_empty_maps(ours)


def without_empty_maps(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: v for k, v in ((k, without_empty_maps(v)) for k, v in value.items()) if v != {}}
    return [without_empty_maps(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("case", [*CASES["accepted"], *CASES["refused_by_commands"]], ids=name_of)
def test_accepts(server: Any, case: dict[str, Any]) -> None:
    code, answer = create(server, changed(case))
    assert code == 201, answer["message"]


@pytest.mark.parametrize("case", [*CASES["refused"], *CASES["refused_in_clusters"]], ids=name_of)
def test_refuses_and_blames_the_field(server: Any, case: dict[str, Any]) -> None:
    code, answer = create(server, changed(case))
    assert code in (400, 422), answer
    assert case["at"] in blamed(answer), answer["message"]


@pytest.fixture
def existing(server: Any, request: pytest.FixtureRequest) -> Any:
    """A sample that is stored while the test lasts."""
    document = SAMPLES[request.param["base"]]
    code, answer = create(server, document, options="")
    assert code == 201, answer["message"]
    yield request.param, answer
    code, answer = server.request("DELETE", f"{collection(document)}/{document['metadata']['name']}")
    assert code == 200, answer


@pytest.mark.parametrize("existing", CASES["changes"], ids=name_of, indirect=True)
def test_changes(server: Any, existing: tuple[dict[str, Any], dict[str, Any]]) -> None:
    case, stored = existing
    document = changed(case)
    document["metadata"] = document["metadata"] | {"resourceVersion": stored["metadata"]["resourceVersion"]}
    path = f"{collection(document)}/{document['metadata']['name']}?dryRun=All"
    code, answer = server.request("PUT", path, document)
    if "at" in case:
        assert code == 422, answer
        assert blamed(answer) == {case["at"]}, answer["message"]
    else:
        assert code == 200, answer["message"]


def test_the_largest_matrix_is_within_the_servers_budget_for_rules(server: Any) -> None:
    document = copy.deepcopy(SAMPLES["ensembledeployment-minimal"])
    document["spec"]["optimization"] = {
        "algorithm": "guided",
        "matrix": [{"device": f"gpu{row}", "batchSizes": [128] * 256} for row in range(1024)],
    }
    code, answer = create(server, document)
    assert code == 201, answer["message"]
    document["spec"]["optimization"]["matrix"][-1]["batchSizes"][-1] = 1 << 20
    code, answer = create(server, document)
    assert code == 422, answer
    assert blamed(answer) == {"spec.optimization.matrix"}, answer["message"]
