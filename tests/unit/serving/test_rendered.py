from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

import pytest

from ensemble_core.errors import UserError
from ensemble_core.serving import installation, rendered
from ensemble_core.serving.rendered import Rendered


@pytest.fixture
def content(make_plan, tmp_path: Path) -> Rendered:
    members = []
    for index, member in enumerate(make_plan().members):
        file = tmp_path / "library" / f"m-{index}.onnx"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"network %d" % index)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        members.append(member.model_copy(update={"onnx": str(file), "sha256": sha256}))
    plan = make_plan(members=tuple(members))
    return Rendered(spec_hash="a" * 64, selection="b" * 64, allocation="c" * 64, plan=plan)


@pytest.fixture
def backends(monkeypatch) -> None:
    monkeypatch.setattr(installation, "prepare_backends", lambda folder: (folder / "averaging").mkdir())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_written_is_complete_and_holds_no_link_to_outside(content, tmp_path: Path):
    folder = tmp_path / "repository"
    written = rendered.write(folder, content)
    assert rendered.read(folder) == written
    assert written.plan.models == {path.name for path in (folder / "models").iterdir()}
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    for worker in content.plan.workers:
        file = folder / "models" / content.plan.model_name(worker) / "1" / "model.onnx"
        assert hashlib.sha256(file.read_bytes()).hexdigest() == content.plan.members[worker.member].sha256
    key = folder / "control-key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o640
    assert len(rendered.control_key(folder)) == 64
    told = json.loads((folder / "plan.json").read_text())
    assert (told["specHash"], told["selection"], told["allocation"]) == ("a" * 64, "b" * 64, "c" * 64)


def test_it_needs_no_hard_links(content, tmp_path: Path, monkeypatch):
    link = Path.hardlink_to

    def only_inside(self: Path, target: Path) -> None:
        if "library" in str(target):
            raise OSError(18, "Invalid cross-device link")
        link(self, target)

    monkeypatch.setattr(Path, "hardlink_to", only_inside)
    rendered.write(tmp_path / "repository", content)
    assert not any(path.is_symlink() for path in (tmp_path / "repository").rglob("*"))
    (tmp_path / "library" / "m-0.onnx").write_bytes(b"another network")
    rendered.check_weights(rendered.read(tmp_path / "repository").plan, content.plan.models)


def test_a_second_time_is_the_same_and_another_plan_takes_its_place(content, tmp_path: Path):
    folder = tmp_path / "repository"
    rendered.write(folder, content)
    before = files(folder)
    rendered.write(folder, content)
    assert files(folder) == before
    fewer = content.plan.model_copy(update={"workers": content.plan.workers[1:]})
    rendered.write(folder, content.model_copy(update={"plan": fewer}))
    assert {path.name for path in (folder / "models").iterdir()} == fewer.models
    assert files(folder)["control-key"] == before["control-key"]


@pytest.mark.parametrize("left", ["", "0123"])
def test_a_key_that_was_cut_off_is_made_again(content, tmp_path: Path, left: str):
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "control-key").write_text(left)
    rendered.write(folder, content)
    assert len(rendered.control_key(folder)) == 64


@pytest.mark.parametrize("writes", range(8))
def test_a_write_that_is_cut_off_anywhere_is_not_taken_for_complete_and_can_be_continued(
    content, tmp_path: Path, monkeypatch, writes: int
):
    folder = tmp_path / "repository"
    rendered.write(folder, content.model_copy(update={"spec_hash": "0" * 64}))
    replace, count = Path.replace, iter(range(100))

    def replace_few(self: Path, target: Path) -> None:
        if next(count) == writes:
            raise KeyboardInterrupt
        replace(self, target)

    with monkeypatch.context() as cut:
        cut.setattr(Path, "replace", replace_few)
        for member in content.plan.members:
            (folder / "weights" / f"{member.sha256}.onnx").unlink()
        try:
            rendered.write(folder, content)
        except KeyboardInterrupt:
            with pytest.raises(UserError, match=r"holds no rendered ensemble \(no plan.json\)"):
                rendered.read(folder)
    assert rendered.write(folder, content) == rendered.read(folder)


def test_weights_that_are_not_what_their_digest_says_are_refused(content, tmp_path: Path):
    (tmp_path / "library" / "m-1.onnx").write_bytes(b"another network")
    with pytest.raises(UserError, match=r"m-1.onnx: is not what its digest says"):
        rendered.write(tmp_path / "repository", content)
    assert not (tmp_path / "repository" / "plan.json").exists()


def test_weights_that_changed_since_are_found(content, tmp_path: Path):
    plan = rendered.write(tmp_path / "repository", content).plan
    rendered.check_weights(plan, plan.models)
    Path(plan.members[2].onnx).write_bytes(b"another network")
    rendered.check_weights(plan, {"m-0--cpu0--b32"})
    with pytest.raises(UserError, match="is not what its digest says: delete the pod"):
        rendered.check_weights(plan, {"m-2--gpu0--b64"})


def test_a_folder_of_something_else_is_left_alone(content, tmp_path: Path):
    (tmp_path / "home" / "models").mkdir(parents=True)
    with pytest.raises(UserError, match="is not empty, and holds no rendered ensemble"):
        rendered.write(tmp_path / "home", content)
    assert (tmp_path / "home" / "models").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; a folder is needed"):
        rendered.write(tmp_path / "file", content)


@pytest.mark.parametrize("key", [None, "", "short"])
def test_a_folder_without_a_key_is_refused(content, tmp_path: Path, key: str | None):
    folder = tmp_path / "repository"
    rendered.write(folder, content)
    (folder / "control-key").unlink() if key is None else (folder / "control-key").write_text(key)
    with pytest.raises(UserError, match="control-key: is missing or too short"):
        rendered.control_key(folder)


def test_the_folder_may_be_mounted_elsewhere(content, tmp_path: Path):
    rendered.write(tmp_path / "here", content)
    (tmp_path / "here").rename(tmp_path / "there")
    plan = rendered.read(tmp_path / "there").plan
    rendered.check_weights(plan, plan.models)


@pytest.mark.usefixtures("backends")
def test_cores_are_those_of_the_container_that_serves(content, tmp_path: Path):
    folder = tmp_path / "repository"
    rendered.write(folder, content)
    before = files(folder)
    rendered.prepare(folder, range(4), shared=False)
    assert files(folder) == before
    plan = rendered.prepare(folder, [9, 6, 8, 7, 5], shared=False).plan
    assert [device.cores for device in plan.devices] == [(), (5, 6), (7, 8)]
    assert rendered.read(folder).plan == plan
    assert '"7,8"' in (folder / "models" / "m-1--cpu1--b128" / "config.pbtxt").read_text()
    with pytest.raises(UserError, match=r"plan.json: needs 4 cores; this process may use 3"):
        rendered.prepare(folder, range(3), shared=False)


@pytest.mark.usefixtures("backends")
def test_members_keep_to_no_cores_that_other_pods_may_use(content, tmp_path: Path):
    folder = tmp_path / "repository"
    rendered.write(folder, content)
    plan = rendered.prepare(folder, range(64), shared=True).plan
    text = (folder / "models" / "m-1--cpu1--b128" / "config.pbtxt").read_text()
    assert not any(device.pinned for device in plan.devices)
    assert '"cores"' not in text
    assert '"threads"' in text
    rendered.prepare(folder, range(5), shared=True)  # four, and one for the GPU
    assert '"cores"' in (folder / "models" / "m-1--cpu1--b128" / "config.pbtxt").read_text()


@pytest.mark.usefixtures("backends")
def test_backends_of_an_earlier_server_are_replaced(content, tmp_path: Path):
    rendered.write(tmp_path / "repository", content)
    (tmp_path / "repository" / "backends" / "old").mkdir(parents=True)
    rendered.prepare(tmp_path / "repository", range(4), shared=False)
    assert [path.name for path in (tmp_path / "repository" / "backends").iterdir()] == ["averaging"]


def test_a_tampered_plan_is_refused_by_name(content, tmp_path: Path):
    rendered.write(tmp_path / "repository", content)
    (tmp_path / "repository" / "plan.json").write_text("{}")
    with pytest.raises(UserError, match=r"repository/plan.json: specHash"):
        rendered.read(tmp_path / "repository")
