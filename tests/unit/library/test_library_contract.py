"""What every store and the library in it must do; the same tests run against S3 in tests/integration."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ensemble_core.errors import UserError
from ensemble_core.library import Fenced, LabelledIds, Library, Store, join
from ensemble_core.library.records import (
    BatchProfile,
    Claim,
    Export,
    Failure,
    Header,
    ModelRecord,
    Profile,
    Rung,
    Split,
)

Publish = Callable[..., ModelRecord]


def test_a_written_file_is_read_listed_and_deleted(store: Store) -> None:
    store.write("a/b/one.json", b"1")
    store.write("a/two.json", b"2")
    store.write("a/two.json", b"22")
    store.write("ab.json", b"3")
    assert store.read("a/two.json") == b"22"
    assert store.read_many(["a/two.json", "a/missing", "ab.json"]) == {"a/two.json": b"22", "ab.json": b"3"}
    assert store.read_many(["ab.json"]) == {"ab.json": b"3"}
    assert store.read_many([]) == {}
    assert store.list("") == ("a/b/one.json", "a/two.json", "ab.json")
    assert store.list("a/") == ("a/b/one.json", "a/two.json")
    assert store.list("a/t") == ("a/two.json",)
    assert store.list("nowhere/") == ()
    assert {path: entry.bytes for path, entry in store.entries("a").items()} == {
        "a/b/one.json": 1,
        "a/two.json": 2,
        "ab.json": 1,
    }
    store.delete("a/two.json")
    store.delete("a/two.json")
    assert store.list("a/") == ("a/b/one.json",)


def test_a_missing_file_is_told_as_such(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("missing.json")
    with pytest.raises(FileNotFoundError):
        store.download("missing.json", tmp_path / "copy")


@pytest.mark.parametrize("path", ["../x", "/x", "a/../x", "a//x", "", "a/", ".tmp-x", "a/.hidden", "a\n", "a\\b"])
def test_a_path_that_could_leave_the_root_is_refused(store: Store, path: str) -> None:
    with pytest.raises(ValueError, match="no relative path"):
        store.write(path, b"")


def test_files_go_up_and_down_whole(store: Store, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(range(256)) * 5000)
    store.upload("models/x/weights", tmp_path / "source")
    store.download("models/x/weights", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "source").read_bytes()


def test_create_succeeds_once(store: Store) -> None:
    assert store.create("claim.json", b"first")
    assert not store.create("claim.json", b"second")
    assert store.read("claim.json") == b"first"
    assert store.list("") == ("claim.json",)


def test_of_eight_creators_one_wins(store: Store) -> None:
    together = threading.Barrier(8)

    def compete(competitor: int) -> list[bool]:
        won = []
        for race in range(10):
            together.wait(timeout=60)
            won.append(store.create(f"race-{race}", b"%d" % competitor))
        return won

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(compete, range(8)))
    winners = [[c for c in range(8) if outcomes[c][race]] for race in range(10)]
    assert [len(w) for w in winners] == [1] * 10
    assert [store.read(f"race-{race}") for race in range(10)] == [b"%d" % w[0] for w in winners]


def test_replace_needs_the_old_content(store: Store) -> None:
    assert not store.replace("record.json", b"", b"new")
    store.write("record.json", b"old")
    assert not store.replace("record.json", b"other", b"new")
    assert store.replace("record.json", b"old", b"new")
    assert not store.replace("record.json", b"old", b"newer")
    assert store.read("record.json") == b"new"


def test_of_eight_replacers_one_wins(store: Store) -> None:
    store.write("record.json", b"old")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: store.replace("record.json", b"old", b"%d" % i), range(8)))
    assert sum(won) == 1
    assert store.read("record.json") == b"%d" % won.index(True)


def test_a_library_is_opened_as_it_was_made(library: Library, header: Header, splits: dict[Split, LabelledIds]) -> None:
    opened = Library.open(library.store)
    assert opened.header == header
    for split, samples in splits.items():
        assert opened.labels(split).tolist() == samples.labels.tolist()
        assert opened.ids(split).tolist() == samples.ids.tolist()
    assert opened.models() == ()
    assert opened.verify() == []


def test_creating_again_opens_and_completes(library: Library, header: Header, splits: dict[Split, LabelledIds]) -> None:
    library.store.delete("splits/heldout/ids.npy")
    again = Library.create(library.store, header, splits)
    assert again.ids("heldout").tolist() == splits["heldout"].ids.tolist()


def test_a_published_model_is_read_back(
    library: Library, publish: Publish, files: Callable[[int], dict[str, Path]]
) -> None:
    stored = publish(4)
    opened = Library.open(library.store)
    assert opened.models() == (stored,)
    assert opened.model("digits-0004") == stored
    assert stored.fingerprint == library.header.fingerprint
    assert sorted(stored.files) == sorted(files(4))
    for split in ("validation", "heldout"):
        predictions = opened.predictions(stored, split)
        assert isinstance(predictions, np.memmap)
        assert np.array_equal(predictions, np.load(files(4)[f"predictions-{split}.npy"]))
    assert opened.file(stored, "model.onnx").read_bytes() == files(4)["model.onnx"].read_bytes()
    assert opened.verify() == []


def test_publishing_again_changes_nothing(library: Library, publish: Publish) -> None:
    first = publish(1)
    before = library.store.entries("models/")
    assert publish(1) == first
    assert library.store.entries("models/") == before


def test_models_are_sorted_and_the_digest_follows_them(library: Library, publish: Publish) -> None:
    digests = [library.digest()]
    for seed in (3, 1, 2):
        publish(seed)
        digests.append(library.digest())
    assert [model.id for model in library.models()] == ["digits-0001", "digits-0002", "digits-0003"]
    assert len(set(digests)) == 4
    library.store.delete("models/digits-0003/record.json")
    assert library.digest() not in digests


def test_attempts_count_up_under_competition(library: Library) -> None:
    assert library.newest_attempt("digits") == 0
    with ThreadPoolExecutor(8) as pool:
        attempts = list(pool.map(lambda _: library.begin_attempt("digits"), range(8)))
    assert sorted(attempts) == list(range(1, 9))
    assert library.newest_attempt("digits") == 8
    assert library.newest_attempt("digits-more") == 0
    library.check_attempt("digits", 8)
    with pytest.raises(Fenced, match="attempt 8 of search digits has taken over from attempt 7"):
        library.check_attempt("digits", 7)


def test_what_an_older_attempt_still_writes_is_ignored(
    library: Library, claim: Callable[..., Claim], rung: Callable[..., Rung]
) -> None:
    library.begin_attempt("digits")
    assert library.claim("digits", claim(0))
    library.write_rung("digits", 0, 1, rung(1))
    taken = library.trials("digits")[0].rungs
    attempt = library.begin_attempt("digits")
    assert library.claim("digits", claim(0, attempt, taken))
    assert not library.claim("digits", claim(0, attempt))
    library.write_rung("digits", 0, 1, rung(3, 9.0))
    library.write_failure("digits", 0, 1, _failure())
    library.write_rung("digits", 0, attempt, rung(3, 0.4))
    state = library.trials("digits")[0]
    assert [(r.epoch, r.value) for r in state.rungs] == [(1, 0.5), (3, 0.4)]
    assert state.failure is None
    assert library.rungs("digits") == {0: state.rungs}
    assert library.claims("digits") == {0: state.claim}


def test_failures_and_exports_of_the_newest_claim_count(library: Library, claim: Callable[..., Claim]) -> None:
    export = Export(started_at=1, finished_at=2, slot=0)
    for trial in (0, 1, 10_000):
        library.claim("digits", claim(trial))
    library.claim("digits-more", claim(5))
    library.write_failure("digits", 1, 1, _failure())
    library.write_export("digits", 10_000, 1, export)
    trials = library.trials("digits")
    assert list(trials) == [0, 1, 10_000]
    assert [t.export for t in trials.values()] == [None, None, export]
    assert library.failures("digits") == {1: _failure()}
    assert list(library.claims("digits-more")) == [5]


def _failure() -> Failure:
    return Failure(
        sequence=3, reason="Diverged", message="loss is NaN", parameters={}, started_at=0, finished_at=1, slot=0
    )


def test_a_newer_claim_fences_the_publisher(library: Library, publish: Publish, claim: Callable[..., Claim]) -> None:
    library.claim("digits", claim(0))
    library.claim("digits", claim(0, 2))
    with pytest.raises(Fenced, match="newer attempt than 1 has claimed digits-0000"):
        publish(0)
    assert library.store.list("models/") == ()
    assert publish(0, attempt=2).origin.attempt == 2


def test_an_overtaken_record_is_ignored_and_replaced(
    library: Library, publish: Publish, claim: Callable[..., Claim]
) -> None:
    library.claim("digits", claim(0))
    publish(0)
    library.claim("digits", claim(0, 2))
    assert library.models() == ()
    with pytest.raises(UserError, match="has no model 'digits-0000'"):
        library.model("digits-0000")
    replaced = publish(0, attempt=2)
    assert library.models() == (replaced,)
    assert {file.path.split("/")[2] for file in replaced.files.values()} == {"2"}


def test_a_publisher_that_wakes_up_after_its_successor_is_fenced(
    library: Library,
    publish: Publish,
    record: Callable[..., ModelRecord],
    files: Callable[[int], dict[str, Path]],
    claim: Callable[..., Claim],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library.claim("digits", claim(0))
    stopped = Library.open(library.store)
    newer: list[ModelRecord] = []
    create = library.store.create

    def create_after_the_successor(path: str, data: bytes) -> bool:
        if path.endswith("record.json") and not newer:
            library.claim("digits", claim(0, 2))
            newer.append(record(0, 2))
            newer[0] = library.publish(newer[0], files(0))
        return create(path, data)

    monkeypatch.setattr(library.store, "create", create_after_the_successor)
    with pytest.raises(Fenced):
        stopped.publish(record(0, 1), files(0))
    assert library.models() == tuple(newer)


def test_checkpoints_continue_with_the_newest_complete_one(library: Library, tmp_path: Path) -> None:
    def save(attempt: int, epoch: int) -> None:
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "state" / "model.safetensors").write_text(f"{attempt}.{epoch}")
        (tmp_path / "state" / "random.json").write_text("{}")
        library.save_checkpoint("digits", 0, attempt, epoch, tmp_path / "state")

    def load() -> tuple[int | None, str]:
        epoch = library.load_checkpoint("digits", 0, tmp_path / "back")
        return epoch, (tmp_path / "back" / "model.safetensors").read_text() if epoch else ""

    assert load() == (None, "")
    save(1, 1)
    save(1, 3)
    assert load() == (3, "1.3")
    assert not [path for path in library.store.list("trials/") if "/checkpoint/1/" in path]
    save(2, 9)
    save(1, 27)  # the old attempt's writer wakes up
    assert load() == (9, "2.9")
    library.store.write("trials/digits-0000/2/checkpoint/9/model.safetensors", b"damaged")
    assert load() == (27, "1.27")
    library.store.delete("trials/digits-0000/1/checkpoint/27/complete.json")
    assert load() == (None, "")
    library.drop_checkpoints("digits", 0, 1)
    left = library.store.list("trials/")
    assert left
    assert all(path.startswith("trials/digits-0000/2/") for path in left)
    library.drop_checkpoints("digits", 0, 2)
    assert library.store.list("trials/") == ()


def test_profiles_and_results_are_kept_by_content(library: Library) -> None:
    batch = BatchProfile(batch_size=32, passes=(0.1, 0.2, 0.3), seconds=0.2, memory_mib=50)
    profile = Profile(
        model="digits-0000",
        model_sha256="0" * 64,
        device_type="cpu-epyc-2c",
        engine="onnxruntime",
        engine_version="1.23",
        cores=2,
        load_seconds=0.1,
        batches=(batch,),
    )
    assert library.profile("cpu-epyc-2c", "onnxruntime", "digits-0000") is None
    library.write_profile(profile)
    assert library.profile("cpu-epyc-2c", "onnxruntime", "digits-0000") == profile
    assert library.profiles("cpu-epyc-2c", "onnxruntime") == {"digits-0000": profile}
    assert library.profiles("cpu-epyc", "onnxruntime") == {}
    assert library.profiled_on("onnxruntime", "digits-0000") == ("cpu-epyc-2c",)
    assert library.profiled_on("openvino", "digits-0000") == library.profiled_on("onnxruntime", "0000") == ()
    assert library.result("selections", "abc") is None
    assert library.write_result("selections", "abc", {"members": ["digits-0000"]}) == {"members": ["digits-0000"]}
    assert library.write_result("selections", "abc", {"members": []}) == {"members": ["digits-0000"]}
    assert library.result("selections", "abc") == {"members": ["digits-0000"]}
    assert library.results("selections") == {"abc": {"members": ["digits-0000"]}}
    assert library.results("allocations") == {}
    for _ in range(2):
        library.delete_result("selections", "abc")
        assert library.results("selections") == {}


def test_a_joined_library_tells_equal_ids_apart(library: Library, publish: Publish) -> None:
    stored = publish(0)
    joined = join([library, Library.open(library.store)])
    assert [(model.library, model.record) for model in joined.models()] == [(0, stored)]
    assert joined.labels("validation").tolist() == library.labels("validation").tolist()
    assert np.array_equal(joined.predictions(joined.models()[0], "heldout"), library.predictions(stored, "heldout"))


def test_any_number_of_models_takes_two_listings_and_one_read(
    library: Library, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = publish(0).model_dump_json(by_alias=True)
    for number in range(1, 40):
        renamed = stored.replace("digits-0000", f"digits-{number:04d}").replace('"trial":0', f'"trial":{number}')
        library.store.write(f"models/digits-{number:04d}/record.json", renamed.encode())
    calls: list[str] = []
    for name in ("list", "read_many"):
        method = getattr(library.store, name)
        monkeypatch.setattr(library.store, name, lambda *a, n=name, m=method: (calls.append(n), m(*a))[1])
    assert len(library.models()) == 40
    assert calls == ["list", "list", "read_many"]
