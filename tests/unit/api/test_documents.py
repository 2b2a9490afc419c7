from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensemble_core.api.documents import MAX_BYTES, Documents, check_references, load_documents
from ensemble_core.commands import validate
from ensemble_core.errors import UserError

Load = Callable[..., Documents]
Complaints = Callable[..., list[str]]
Samples = dict[str, dict[str, Any]]

SEARCH = """
apiVersion: ensemble-operator.io/v1alpha1
kind: HPOSearch
metadata: {name: digits}
spec:
  library: {storage: {path: library}}
  dataset: {builtin: digits}
  maxTrialCount: 8
"""
SELECTION = """
apiVersion: ensemble-operator.io/v1alpha1
kind: EnsembleSelection
metadata: {name: digits}
spec:
  sources: [{hpoSearchName: digits}]
  budgets: [{name: small, memoryMiB: 64}]
"""
DEPLOYMENT = """
apiVersion: ensemble-operator.io/v1alpha1
kind: EnsembleDeployment
metadata: {name: digits}
spec:
  selectionRef: {name: digits, budgetName: small}
  devices: [{name: cores, type: cpu}]
"""


def test_the_only_document_of_a_kind_needs_no_name(load: Load) -> None:
    documents = load(SEARCH, SELECTION, DEPLOYMENT)
    assert documents.search() is documents.search("digits") is documents.searches["digits"]
    assert documents.selection().spec.budgets[0].memory_mib == 64
    assert documents.deployment().spec.selection_ref.budget_name == "small"


def test_lookups_that_lead_nowhere_say_what_there_is(load: Load) -> None:
    documents = load(SEARCH, SEARCH.replace("name: digits}", "name: letters}", 1))
    with pytest.raises(UserError, match="needs one HPOSearch, but has several: digits, letters; give a name"):
        documents.search()
    with pytest.raises(
        UserError, match="has no HPOSearch named digit; did you mean digits\\?; there is digits, letters"
    ):
        documents.search("digit")
    with pytest.raises(UserError, match="needs one EnsembleSelection, but has none"):
        documents.selection()


def test_storages_of_a_selection(load: Load) -> None:
    extra = SELECTION.replace("[{hpoSearchName: digits}]", "[{storage: {path: other}}, {hpoSearchName: digits}]")
    documents = load(SEARCH, extra)
    other, library = documents.source_storages(documents.selection())
    assert library == documents.search().spec.library.storage
    assert documents.result_storage(documents.selection()) == other
    several = load(SEARCH, SEARCH.replace("name: digits", "name: unused"), extra)
    assert list(several.source_searches(several.selection())) == ["digits"]
    named = load(SEARCH, SELECTION + "  library: {path: results}\n")
    assert str(named.result_storage(named.selection()).path).endswith("/results")


def test_local_paths_are_relative_to_the_file(load: Load, tmp_path: Path) -> None:
    spec = load(SEARCH.replace("builtin: digits", "arrays: data/digits.npz")).search().spec
    assert spec.library.storage.path == str(tmp_path / "library")
    assert spec.dataset.arrays == str(tmp_path / "data/digits.npz")
    spec = load(SEARCH.replace("builtin: digits", "storage: {path: data}, imageFolder: a/b")).search().spec
    assert spec.dataset.storage is not None
    assert spec.dataset.storage.path == str(tmp_path / "data")
    assert spec.dataset.image_folder == "a/b"
    assert load(SEARCH.replace("path: library", "path: /library")).search().spec.library.storage.path == "/library"


def test_every_wrong_field_of_every_document_has_a_line(complaints: Complaints) -> None:
    assert complaints(
        SEARCH.replace("maxTrialCount", "maxTrialCuont").replace("digits}\n  max", "mnist}\n  max"),
        SELECTION.replace("memoryMiB: 64", "inferenceTimeSeconds: 0, memoryMib: 3"),
        DEPLOYMENT.replace("type: cpu", "type: cpus, count: '2'"),
    ) == [
        'document 1 (HPOSearch digits): spec.dataset.builtin: "mnist" must be digits',
        "document 1 (HPOSearch digits): spec.maxTrialCount: is missing",
        "document 1 (HPOSearch digits): spec.maxTrialCuont: unknown field; did you mean maxTrialCount?; allowed are"
        " suspend, serviceAccountName, podOverrides, library, dataset, task, objectives, algorithm, parameters,"
        " trainer, parallelTrialCount, maxTrialCount, maxFailedTrialCount, maxDurationSeconds, resourcesPerTrial,"
        " workers, engine, seed",
        "document 2 (EnsembleSelection digits): spec.budgets[0].inferenceTimeSeconds: 0 must be greater than 0",
        "document 2 (EnsembleSelection digits): spec.budgets[0].memoryMib: unknown field; did you mean memoryMiB?;"
        " allowed are name, inferenceTimeSeconds, memoryMiB, parametersMillions",
        'document 3 (EnsembleDeployment digits): spec.devices[0].type: "cpus" must be one of gpu, cpu;'
        " did you mean cpu?",
        'document 3 (EnsembleDeployment digits): spec.devices[0].count: "2" must be a whole number',
    ]


def test_all_broken_rules_of_an_object_are_told(complaints: Complaints) -> None:
    assert complaints(SEARCH + "  objectives: [{metric: flops}, {metric: flops}]\n") == [
        "document 1 (HPOSearch digits): spec.objectives: must begin with a metric of quality: crossEntropy, error,"
        " macroF1, top5Error",
        "document 1 (HPOSearch digits): spec.objectives: must not have two items of the same metric: flops",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no document; allowed kinds are HPOSearch, EnsembleSelection, EnsembleDeployment"),
        ("- 1", "document 1: [1] must be an object with apiVersion, kind, metadata, spec"),
        (
            SEARCH.replace("HPOSearch", "HPOsearch"),
            'document 1: kind: "HPOsearch" must be one of HPOSearch, EnsembleSelection, EnsembleDeployment;'
            " did you mean HPOSearch?",
        ),
        (
            SEARCH.replace("kind: HPOSearch", ""),
            "document 1: kind: is missing; must be one of HPOSearch, EnsembleSelection, EnsembleDeployment",
        ),
        (
            SEARCH.replace("apiVersion: ensemble-operator.io/v1alpha1", ""),
            "document 1 (HPOSearch digits): apiVersion: is missing; it is ensemble-operator.io/v1alpha1",
        ),
        (
            SEARCH.replace("v1alpha1", "v1"),
            'document 1 (HPOSearch digits): apiVersion: "ensemble-operator.io/v1" must be'
            " ensemble-operator.io/v1alpha1; did you mean ensemble-operator.io/v1alpha1?",
        ),
        (SEARCH.replace("{name: digits}", "{}"), "document 1 (HPOSearch): metadata.name: is missing"),
        (SEARCH.replace("metadata: {name: digits}", ""), "document 1 (HPOSearch): metadata: is missing"),
        (SEARCH + "  seed: 1\n  seed: 2\n", "document 1: line 10: the key seed is given twice"),
        (SEARCH + "  seed: .inf\n", "document 1 (HPOSearch digits): spec.seed: Infinity must be a whole number"),
        (
            SEARCH + "  resourcesPerTrial: {gpu: .nan}\n",
            "document 1 (HPOSearch digits): spec.resourcesPerTrial.gpu: NaN must be a finite number",
        ),
        (
            SEARCH + "---" + SEARCH,
            'document 2 (HPOSearch digits): metadata.name: "digits" is the name of an earlier HPOSearch of this file',
        ),
        (
            SEARCH + "  podOverrides: {nodeSelector: {a/b: 1}}\n",
            'document 1 (HPOSearch digits): spec.podOverrides.nodeSelector["a/b"]: 1 must be a valid string',
        ),
        (
            SEARCH + "  parameters: [{name: a, parameterType: discrete, feasibleSpace: {list: [0.5]}}]\n",
            "document 1 (HPOSearch digits): spec.parameters[0].feasibleSpace.list[0]: 0.5 must be a whole number or"
            " text; write a number with a fraction in quotes",
        ),
    ],
)
def test_complaints(complaints: Complaints, text: str, complaint: str) -> None:
    assert complaints(text) == [complaint]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1", "is not YAML: while parsing"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML: could not determine a constructor"),
        ("a: \x07", "is not YAML: unacceptable character"),
        ("a: *b", "found undefined alias"),
        ("a: &a [*a]", "has more than 100000 values, or one that contains itself"),
        (
            "\n".join(["l0: &l0 [x]", *(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 10))]),
            "has more than 100000 values, or one that contains itself",
        ),
        ("[" * 5000 + "]" * 5000, "is nested too deeply"),
        ("{1: " * 5000 + "}" * 5000, "is nested too deeply"),
        ("# " + "x" * MAX_BYTES, f"is larger than {MAX_BYTES} bytes"),
        ("a: 2024-02-31T00:00:00Z\nkind: {}", "document 1: kind: {} must be one of"),
    ],
)
def test_text_that_is_no_document_is_refused_in_one_line(complaints: Complaints, text: str, part: str) -> None:
    (line,) = complaints(text)
    assert part in line


@pytest.mark.parametrize("text", ["[1", "]", "%", "a: b: c", "@"])
@pytest.mark.parametrize("before", [0, 2])
def test_a_document_that_is_not_yaml_is_told_by_its_number_from_1(
    complaints: Complaints, text: str, before: int
) -> None:
    (line,) = complaints("{}\n---\n" * before + f"{text}\n")
    assert f"document {before + 1}: is not YAML: " in line


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file or directory"):
        load_documents(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_documents(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"kind: \xff")
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 6\)"):
        load_documents(tmp_path / "binary.yaml")


def test_yaml_is_read_as_clusters_read_it(load: Load) -> None:
    space = "{min: 1e-4, max: 1.5E+1, distribution: logUniform}"
    text = SEARCH + f"  parameters: [{{name: a, parameterType: double, feasibleSpace: {space}}}]\n"
    text = text.replace("{name: digits}", "{name: digits, annotations: {date: 2024-01-01}}")
    search = load(text + "status: {trials: 3}\n").search()
    space_read = search.spec.parameters[0].feasible_space
    assert (space_read.min, space_read.max) == (1e-4, 15.0)
    assert search.metadata.annotations == {"date": "2024-01-01"}


def test_anchors_and_merge_keys_work(load: Load) -> None:
    text = SELECTION.replace("[{name: small, memoryMiB: 64}]", "[&a {name: small, memoryMiB: 64}, {<<: *a, name: b}]")
    assert [budget.name for budget in load(text).selection().spec.budgets] == ["small", "b"]


def test_numbers_in_quotes_are_numbers_in_a_list(load: Load) -> None:
    text = SEARCH + "  parameters: [{name: a, parameterType: discrete, feasibleSpace: {list: [1, '2', '0.5']}}]\n"
    search = load(text).search()
    assert search.spec.parameters[0].feasible_space.list == (1, 2, 0.5)
    assert search.document()["spec"]["parameters"][0]["feasibleSpace"]["list"] == [1, 2, "0.5"]


def test_references(load: Load) -> None:
    check_references(load(SEARCH, SELECTION, DEPLOYMENT), complete=True)
    check_references(load(SELECTION))
    check_references(load(DEPLOYMENT))
    check_references(load(SEARCH, SELECTION, DEPLOYMENT.replace("budgetName: small", "budgetName: best-single")))
    with pytest.raises(UserError, match=r'sources\[0\].hpoSearchName: "digits" is no HPOSearch'):
        check_references(load(SELECTION), complete=True)
    with pytest.raises(UserError, match="EnsembleSelection of this file; there is none"):
        check_references(load(DEPLOYMENT), complete=True)


def test_all_wrong_references_are_told(load: Load, tmp_path: Path) -> None:
    selection = SELECTION.replace("hpoSearchName: digits", "hpoSearchName: digit")
    deployment = DEPLOYMENT.replace("budgetName: small", "budgetName: smal")
    other = DEPLOYMENT.replace("metadata: {name: digits}", "metadata: {name: b}").replace("{name: digits,", "{name: x,")
    with pytest.raises(UserError) as caught:
        check_references(load(SEARCH, selection, deployment, other))
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        'test.yaml: EnsembleSelection digits: spec.sources[0].hpoSearchName: "digit" is no HPOSearch of this file;'
        " did you mean digits?; there is digits",
        'test.yaml: EnsembleDeployment digits: spec.selectionRef.budgetName: "smal" is no budget of this file;'
        " did you mean small?; there is small, best-single",
        'test.yaml: EnsembleDeployment b: spec.selectionRef.name: "x" is no EnsembleSelection of this file;'
        " there is digits",
    ]


def test_validate_tells_what_is_valid_and_all_that_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, worse = (tmp_path / name for name in ("good.yaml", "bad.yaml", "worse.yaml"))
    good.write_text(f"{SEARCH}---{SELECTION}")
    bad.write_text(SEARCH.replace("maxTrialCount: 8", "maxTrialCount: 0"))
    worse.write_text(f"{SEARCH}---{SELECTION.replace('hpoSearchName: digits', 'hpoSearchName: x')}")
    parser = argparse.ArgumentParser()
    validate.add_arguments(parser)
    assert validate.run(parser.parse_args([str(good)])) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{good}: HPOSearch digits is valid",
        f"{good}: EnsembleSelection digits is valid",
    ]
    with pytest.raises(UserError) as caught:
        validate.run(parser.parse_args([str(bad), str(good), str(worse)]))
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{bad}: document 1 (HPOSearch digits): spec.maxTrialCount: 0 must be")
    assert second.startswith(f"{worse}: EnsembleSelection digits: spec.sources[0].hpoSearchName")
    assert capsys.readouterr().out.count("is valid") == 2


def test_samples_are_valid(samples: Samples, load: Load) -> None:
    for name, sample in samples.items():
        documents = load(json.dumps(sample))
        assert documents.searches or documents.selections or documents.deployments, name
