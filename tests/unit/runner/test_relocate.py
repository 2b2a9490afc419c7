"""Libraries that a run writes move below its output folder; everything else stays where the user has it."""

from __future__ import annotations

from pathlib import Path

from ensemble_core.api.documents import load_documents
from ensemble_core.runner.relocate import dump, relocate

TEXT = """
apiVersion: ensemble-operator.io/v1alpha1
kind: HPOSearch
metadata: {name: one}
spec: {library: {storage: {path: libraries/one}}, dataset: {arrays: data.npz}, maxTrialCount: 8}
---
apiVersion: ensemble-operator.io/v1alpha1
kind: EnsembleSelection
metadata: {name: pick}
spec:
  sources: [{hpoSearchName: one}, {storage: {path: bought}}, {storage: {path: libraries/two}}]
  library: {path: libraries/two}
  budgets: [{name: small, parametersMillions: 1}]
"""


def load(folder: Path, text: str = TEXT):
    file = folder / "all.yaml"
    file.write_text(text)
    return load_documents(file)


def test_written_libraries_move_and_given_ones_stay(tmp_path):
    user, output = tmp_path / "user", tmp_path / "output"
    user.mkdir()
    moved = relocate(load(user), user, output)
    selection = moved.selection()
    assert moved.search().spec.library.storage.path == str(output / "libraries/one")
    assert selection.spec.library.path == str(output / "libraries/two")
    assert [s.path for s in moved.source_storages(selection)] == [
        str(output / "libraries/one"),
        str(user / "bought"),
        str(output / "libraries/two"),
    ]
    assert moved.search().spec.dataset.arrays == str(user / "data.npz")


def test_a_library_outside_the_file_s_folder_stays(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    user = tmp_path / "user"
    user.mkdir()
    documents = load(user, TEXT.replace("libraries/one", str(elsewhere)))
    assert relocate(documents, user, tmp_path / "output").search().spec.library.storage.path == str(elsewhere)


def test_dumped_documents_load_as_they_are(tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    moved = relocate(load(tmp_path), tmp_path, output)
    again = load(output, dump(moved, output))
    assert (again.searches, again.selections, again.deployments) == (
        moved.searches,
        moved.selections,
        moved.deployments,
    )


def test_an_output_folder_can_be_moved_with_its_documents(tmp_path):
    output, elsewhere = tmp_path / "output", tmp_path / "a folder elsewhere"
    elsewhere.mkdir()
    text = dump(relocate(load(tmp_path), tmp_path, output), output)
    assert load(elsewhere, text).search().spec.library.storage.path == str(elsewhere / "libraries/one")
    assert str(output) not in text
