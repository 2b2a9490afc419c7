"""Commands in the pages are true, and agree with each other."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import yaml
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[3]
PAGES = ("README.md", "docs/administrator-guide.md", "charts/ensemble-operator/README.md")
HELM = re.compile(r"^\$ helm (?:install|upgrade|uninstall) (\S+).*--namespace (\S+)", re.MULTILINE)
OF_ONE_TEAM = ("ensemble-operator", "team-a")


def text(page: str) -> str:
    return (ROOT / page).read_text()


@pytest.mark.parametrize("page", PAGES)
def test_all_commands_are_for_one_release_in_one_namespace(page: str) -> None:
    assert set(HELM.findall(text(page))) - {OF_ONE_TEAM} == {("ensemble-operator", "ensemble-operator")}


def test_the_request_by_curl_is_a_sample_of_the_digits() -> None:
    page = text("docs/user-guide.md")
    url, body = re.findall(r"^\$ curl (http\S+/infer) .*--data '\n(.*?)'$", page, re.MULTILINE | re.DOTALL)[0]
    deployment = yaml.safe_load(text("examples/gitops/digits/ensembledeployment.yaml"))
    assert url == f"http://127.0.0.1:8000/v2/models/{deployment['metadata']['name']}/infer"
    (given,) = json.loads(body)["inputs"]
    assert (given["name"], given["datatype"], given["shape"]) == ("INPUT", "UINT8", [1, 8, 8, 1])
    digits = load_digits()
    assert len(given["data"]) == math.prod(given["shape"])
    assert (given["data"], digits.target[0]) == (digits.images[0].ravel().tolist(), 0)
