"""The driver's loop and the search's state on a real library, with slots that train nothing."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble_core.api.hposearch import HPOSearchSpec
from ensemble_core.errors import UserError
from ensemble_core.library import names
from ensemble_core.library.library import Library
from ensemble_core.library.records import Export, Metrics, ModelRecord, Origin, Rung, Signature, Split
from ensemble_core.library.searches import Fenced
from ensemble_core.library.splits import LabelledIds, make_header
from ensemble_core.library.store import LocalStore
from ensemble_core.library.timeline import occupancy, search_timeline
from ensemble_core.report import CommandError
from ensemble_operator.reports import typed
from ensemble_operator.search_status import TrainSummary
from ensemble_trainer.driver import Driver, check_failures, has_work
from ensemble_trainer.outcome import final_summary, rfc3339, summary
from ensemble_trainer.search import Search, remember
from ensemble_trainer.slots import Lost, Outcome, Ready
from ensemble_trainer.space import search_space
from ensemble_trainer.worker import Broken, Order, Published, Reached

NAME = "digits"
SAMPLES = 4


class KilledError(Exception):
    """Stands for SIGKILL: nothing after it runs."""


def make_spec(**changes: Any) -> HPOSearchSpec:
    content: dict[str, Any] = {
        "library": {"storage": {"path": "/unused"}},
        "dataset": {"builtin": "digits"},
        "maxTrialCount": 12,
        "parallelTrialCount": 3,
        "maxFailedTrialCount": 2,
        "trainer": {"family": "resnet", "maxEpochs": 9},
        "algorithm": {"name": "async-hyperband", "settings": {"brackets": 2}},
        **changes,
    }
    return HPOSearchSpec.model_validate(content)


def make_library(folder: Path) -> Library:
    ids = np.array([str(i) for i in range(SAMPLES)])
    labels: dict[Split, LabelledIds] = {
        "validation": LabelledIds(ids, np.arange(SAMPLES) % 2),
        "heldout": LabelledIds(ids, np.arange(SAMPLES) % 2),
    }
    header = make_header(Signature(input_type="uint8", input_shape=(8, 8, 1), classes=2), ("a", "b"), labels)
    return Library.create(LocalStore(folder), header, labels)


def loss(parameters: Mapping[str, Any], epoch: int) -> float:
    """A surrogate: differs by parameters, falls with epochs."""
    return float(parameters["learningRate"] * 100 + parameters["l2"] + 1 / epoch)


def metrics_of(value: float) -> Metrics:
    return Metrics(cross_entropy=value, error=0.5, macro_f1=0.5, top5_error=0.0)


@dataclass
class FakeSlots:
    """Slots in virtual time: trials take as long as their parameters say; `faults` maps (trial, epoch) to outcomes."""

    library: Library
    count: int = 3
    faults: dict[tuple[int, int], list[Outcome | Exception]] = field(default_factory=dict)
    kill_after: int | None = None  # outcomes
    trained: list[tuple[int, int]] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    replaced: list[int] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        self._ticket = itertools.count()
        self._queue: list[tuple[float, int, int, Callable[[], Outcome]]] = []
        for slot in range(self.count):
            self._put(0.0, slot, Ready)

    note = ""

    def advance(self, slot: int, order: Order) -> None:
        seconds = random.Random(f"{order.trial} {order.epoch}").uniform(1, 9)
        begin = self.now
        self._put(seconds, slot, lambda: self._reach(order, begin))

    def finish(self, slot: int, order: Order) -> None:
        begin = self.now
        self._put(0.5, slot, lambda: self._publish(order, begin))

    def replace(self, slot: int) -> None:
        self.replaced.append(slot)
        self._put(3.0, slot, Ready)

    def wait(self) -> list[tuple[int, Outcome]]:
        if self.kill_after == 0:
            raise KilledError
        if self.kill_after is not None:
            self.kill_after -= 1
        self.now, _, slot, outcome = self._queue.pop(self._queue.index(min(self._queue, key=lambda e: e[:2])))
        done = outcome()
        if isinstance(done, Lost):
            self._put(3.0, slot, Ready)
        return [(slot, done)]

    def _put(self, seconds: float, slot: int, outcome: Callable[[], Outcome]) -> None:
        self._queue.append((self.now + seconds, next(self._ticket), slot, outcome))

    def _reach(self, order: Order, begin: float) -> Outcome:
        self.orders.append(order)
        fault = self._fault(order)
        if fault is not None:
            return fault
        self.trained.append((order.trial, order.epoch))
        return Reached(order.epoch, metrics_of(loss(order.parameters, order.epoch)), begin, self.now)

    def _publish(self, order: Order, begin: float) -> Outcome:
        fault = self._fault(order)
        if fault is not None:
            return fault
        export = Export(started_at=begin, finished_at=self.now, slot=order.slot, attempt=order.attempt)
        self.library.write_export(NAME, order.trial, order.attempt, export)
        return Published(publish(self.library, order), export)

    def _fault(self, order: Order) -> Outcome | None:
        faults = self.faults.get((order.trial, order.epoch))
        fault = faults.pop(0) if faults else None
        if isinstance(fault, Exception):
            raise fault
        return fault


def publish(library: Library, order: Order) -> ModelRecord:
    folder = Path(library.store.url).parent / f"scratch-{order.trial}-{order.attempt}"
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(b"onnx")
    files = {"model.onnx": folder / "model.onnx"}
    for split in ("validation", "heldout"):
        files[f"predictions-{split}.npy"] = folder / f"predictions-{split}.npy"
        np.save(files[f"predictions-{split}.npy"], np.full((SAMPLES, 2), 0.5, np.float32))
    record = ModelRecord(
        id=names.trial_id(NAME, order.trial),
        family="resnet",
        hyperparameters=order.parameters,
        validation=metrics_of(loss(order.parameters, order.epoch)),
        parameters=1000 + order.trial,
        epochs=order.epoch,
        origin=Origin(search=NAME, trial=order.trial, attempt=order.attempt, rung=order.epoch),
        servable=True,
        files={},
    )
    return library.publish(record, files)


def make_search(library: Library, spec: HPOSearchSpec) -> Search:
    return Search(library, NAME, spec, search_space(spec))


def begun(library: Library, spec: HPOSearchSpec) -> Search:
    search = make_search(library, spec)
    search.begin()
    return search


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return make_library(tmp_path / "library")


def check_consistent(library: Library, spec: HPOSearchSpec) -> None:
    """What must hold of any library, however its search was interrupted: the rungs' decisions are the rule's."""
    search = make_search(library, spec)
    events: list[tuple[int, int, Rung]] = sorted(
        (rung.sequence, trial.claim.bracket, rung) for trial in search.trials for rung in trial.rungs
    )
    sequences = [sequence for sequence, _, _ in events]
    assert len(set(sequences)) == len(sequences)
    recorded: dict[tuple[int, int], list[float | None]] = {}
    for _, bracket, rung in events:
        earlier = recorded.setdefault((bracket, rung.epoch), [])
        assert rung.goes_on == search.rule.goes_on(earlier, rung.value, rung.epoch)
        earlier.append(rung.value)
    for trial in search.trials:
        epochs = [0, *(rung.epoch for rung in trial.rungs)]
        expected = [search.rule.next_epoch(trial.claim.bracket, done) for done in epochs[:-1]]
        assert epochs[1:] == expected
        assert all(rung.goes_on for rung in trial.rungs[:-1])


def test_every_trial_ends_in_the_library(library: Library) -> None:
    spec = make_spec()
    slots = FakeSlots(library)
    search = begun(library, spec)
    Driver(search, slots).run()
    assert [record.id for record in library.models()] == [f"digits-{i:04d}" for i in range(12)]
    assert {record.epochs for record in library.models()} > {9.0}  # some were stopped early
    assert len(set(slots.trained)) == len(slots.trained)
    assert not has_work(search, None)
    assert not has_work(make_search(library, spec), None)
    check_consistent(library, spec)


def test_the_summary_at_any_time_is_of_what_the_library_has(library: Library) -> None:
    spec = make_spec(objectives=[{"metric": "crossEntropy"}, {"metric": "macroF1"}])
    started = remember(library, NAME, spec)
    search = begun(library, spec)
    driver = Driver(search, FakeSlots(library))
    seen: list[dict[str, Any]] = []

    def look() -> None:
        told = summary(search, search.spans, driver.running())
        trials, models = told["trials"], library.models()
        assert typed(TrainSummary, json.loads(json.dumps(told))) is not None  # the operator's reading
        assert trials["total"] == sum(count for state, count in trials.items() if state != "total")
        assert trials["running"] <= 3
        assert (told["models"], told["libraryDigest"]) == (len(models), library.digest())
        assert trials["succeeded"] == sum(record.epochs == 9 for record in models)
        assert trials["earlyStopped"] == sum(record.epochs < 9 for record in models)
        seen.append(told)

    driver.changed = look
    driver.run()
    assert {told["trials"]["running"] for told in seen} >= {0, 1, 2, 3}
    last = final_summary(make_search(library, spec), search_timeline(library, NAME))
    assert last["trials"]["earlyStopped"] > 0
    best = min(library.models(), key=lambda record: record.validation.cross_entropy)
    assert last["best"]["modelId"] == last["best"]["trial"] == best.id
    assert last["best"]["value"] == best.validation.cross_entropy
    assert last["best"]["metrics"]["macroF1"] == 0.5
    parameters = {one["name"]: one["value"] for one in last["best"]["parameters"]}
    assert parameters == {name: str(value) for name, value in best.hyperparameters.items()}
    assert last["front"] == [{"modelId": best.id, "values": [best.validation.cross_entropy, 0.5]}]
    assert [seen[-1][key] for key in ("trials", "best", "front", "libraryDigest", "startTime")] == [
        last[key] for key in ("trials", "best", "front", "libraryDigest", "startTime")
    ]
    assert last["startTime"] == rfc3339(started)
    ended = max(span.finished_at for span in search.spans)
    assert (seen[-1]["completionTime"], last["completionTime"]) == (None, rfc3339(ended))


def test_slots_are_busy(library: Library) -> None:
    search = begun(library, make_spec(maxTrialCount=40))
    Driver(search, FakeSlots(library)).run()
    assert occupancy(search.spans, 3) == pytest.approx(1.0)
    from_files = search_timeline(library, NAME)
    assert occupancy(from_files, 3) == pytest.approx(1.0)
    assert len(from_files) == len(search.spans)


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_it_continues(tmp_path: Path, seed: int) -> None:
    spec = make_spec(maxTrialCount=25)
    undisturbed = make_library(tmp_path / "undisturbed" / "library")
    Driver(begun(undisturbed, spec), FakeSlots(undisturbed)).run()
    library = make_library(tmp_path / "killed" / "library")
    rng, kills, trained = random.Random(seed), 0, []
    while has_work(search := make_search(library, spec), None):
        search.begin()
        slots = FakeSlots(library, kill_after=rng.randrange(1, 30))
        try:
            Driver(search, slots).run()
        except KilledError:
            kills += 1
        trained += slots.trained
        check_consistent(library, spec)
    assert kills >= 2
    # A rung that was reached but not recorded is trained again; recorded ones are not.
    rungs = {(trial, rung.epoch) for trial, own in library.rungs(NAME).items() for rung in own}
    assert set(trained) == rungs
    assert len(trained) <= len(rungs) + 3 * kills
    proposals = [
        {trial: (claim.parameters, claim.bracket) for trial, claim in one.claims(NAME).items()}
        for one in (undisturbed, library)
    ]
    assert proposals[0] == proposals[1]
    assert len(library.models()) == 25


def test_a_finished_search_continues_when_more_trials_are_asked_for(library: Library) -> None:
    Driver(begun(library, make_spec(maxTrialCount=4)), FakeSlots(library)).run()
    before = {record.id: record for record in library.models()}
    slots = FakeSlots(library)
    Driver(begun(library, make_spec(maxTrialCount=7)), slots).run()
    assert {trial for trial, _ in slots.trained} == {4, 5, 6}
    after = {record.id: record for record in library.models()}
    assert len(after) == 7
    assert {key: after[key] for key in before} == before


def test_a_stopped_trial_without_a_model_is_only_exported(library: Library) -> None:
    spec = make_spec(maxTrialCount=1, parallelTrialCount=1, maxFailedTrialCount=0)
    search = begun(library, spec)
    trial = search.propose()
    epoch = 0
    while not trial.trained:
        epoch = search.rule.next_epoch(trial.claim.bracket, epoch)
        search.record_rung(trial, Reached(epoch, metrics_of(0.5), 0.0, 1.0), 0)
    slots = FakeSlots(library)
    Driver(begun(library, spec), slots).run()
    assert slots.trained == []
    (record,) = library.models()
    assert (record.epochs, record.origin.attempt) == (9, 2)


def test_failures_are_recorded_and_the_search_goes_on(library: Library) -> None:
    spec = make_spec(maxFailedTrialCount=3, algorithm={"name": "random"})
    faults: dict[tuple[int, int], list[Outcome | Exception]] = {
        (1, 9): [Broken("Diverged", "the loss is nan", 0.0, 1.0)],
        (4, 9): [Broken("Raised", "ValueError: x\n  trace", 0.0, 1.0)],
        (7, 9): [Broken("OutOfMemory", "MemoryError", 0.0, 1.0)],
    }
    search = begun(library, spec)
    Driver(search, FakeSlots(library, faults=faults)).run()
    failures = library.failures(NAME)
    assert {trial: failure.reason for trial, failure in failures.items()} == {
        1: "Diverged",
        4: "Raised",
        7: "OutOfMemory",
    }
    claims = library.claims(NAME)
    assert all(failure.parameters == claims[trial].parameters for trial, failure in failures.items())
    assert len(library.models()) == 9  # failed trials count
    told = summary(search, search.spans)
    states = {"pending": 0, "running": 0, "succeeded": 9, "earlyStopped": 0, "failed": 3}
    assert told["trials"] == {"total": 12, **states}
    assert told["failures"] == {"Diverged": 1, "Raised": 1, "OutOfMemory": 1}
    assert not has_work(make_search(library, spec), None)


def test_one_failure_too_many_ends_the_search_and_keeps_the_library(library: Library) -> None:
    spec = make_spec(maxFailedTrialCount=1, algorithm={"name": "random"})
    faults: dict[tuple[int, int], list[Outcome | Exception]] = {
        (trial, 9): [Broken("Diverged", "the loss is nan", 0.0, 1.0)] for trial in (3, 5)
    }
    search = begun(library, spec)
    with pytest.raises(CommandError, match=r"2 trials of digits failed, more than maxFailedTrialCount 1.*loss is nan"):
        Driver(search, FakeSlots(library, faults=faults)).run()
    assert sorted(library.failures(NAME)) == [3, 5]
    assert library.models()
    with pytest.raises(CommandError):
        check_failures(make_search(library, spec))
    more = make_spec(maxFailedTrialCount=2, algorithm={"name": "random"})
    Driver(begun(library, more), FakeSlots(library)).run()
    assert len(library.models()) == 10


def test_a_trial_whose_process_dies_continues_and_others_are_not_held_up(library: Library) -> None:
    faults: dict[tuple[int, int], list[Outcome | Exception]] = {
        (0, 9): [Lost("killed"), Lost("killed"), Lost("killed")]
    }
    slots = FakeSlots(library, faults=faults)
    Driver(begun(library, make_spec(algorithm={"name": "random"})), slots).run()
    assert len(library.models()) == 12
    assert [order.resumed for order in slots.orders if order.trial == 0] == [False, True, True, True]
    assert library.failures(NAME) == {}


def test_a_trial_that_loses_four_processes_has_failed(library: Library) -> None:
    faults: dict[tuple[int, int], list[Outcome | Exception]] = {(0, 9): [Lost("killed by the kernel")] * 4}
    Driver(begun(library, make_spec(algorithm={"name": "random"})), FakeSlots(library, faults=faults)).run()
    failure = library.failures(NAME)[0]
    assert failure.reason == "Lost"
    assert "killed by the kernel" in failure.message
    assert len(library.models()) == 11


def test_losses_between_which_a_trial_gets_on_are_no_failure(library: Library) -> None:
    faults: dict[tuple[int, int], list[Outcome | Exception]] = {
        (0, epoch): [Lost("the node is gone")] * 3 for epoch in (1, 3, 9)
    }
    spec = make_spec(
        maxTrialCount=1, parallelTrialCount=1, maxFailedTrialCount=0, algorithm={"settings": {"brackets": 1}}
    )
    Driver(begun(library, spec), FakeSlots(library, count=1, faults=faults)).run()
    assert [record.epochs for record in library.models()] == [9]


def test_a_poisoned_process_is_replaced(library: Library) -> None:
    broken = Broken("Raised", "AcceleratorError: CUDA error: an illegal memory access was encountered", 0.0, 1.0)
    faults: dict[tuple[int, int], list[Outcome | Exception]] = {(0, 9): [broken]}
    slots = FakeSlots(library, faults=faults)
    Driver(begun(library, make_spec(algorithm={"name": "random"})), slots).run()
    assert slots.replaced == [0]
    assert len(library.models()) == 11


def test_after_the_deadline_running_trials_end_and_none_starts(library: Library) -> None:
    spec = make_spec()
    search = begun(library, spec)
    slots = FakeSlots(library)
    driver = Driver(search, slots, deadline=time.time() + 3600)
    driver.changed = lambda: setattr(driver, "deadline", 0.0) if len(slots.trained) >= 3 else None
    driver.run()
    assert {trial for trial, _ in slots.trained} == {0, 1, 2}
    assert len(library.models()) == 3
    assert not has_work(search, 0.0)
    assert has_work(search, None)


def test_a_driver_that_was_replaced_changes_nothing_that_counts(library: Library) -> None:
    spec = make_spec()
    old = begun(library, spec)
    first, second = old.propose(), old.propose()
    old.record_rung(first, Reached(1, metrics_of(0.5), 0.0, 1.0), 0)
    new = begun(library, spec)
    before = library.trials(NAME)
    with pytest.raises(Fenced):
        old.record_rung(second, Reached(1, metrics_of(0.1), 0.0, 1.0), 0)
    with pytest.raises(Fenced):
        old.record_failure(second, Broken("Raised", "x", 0.0, 1.0), 0)
    with pytest.raises(Fenced):
        old.propose()
    with pytest.raises(Fenced):
        publish(library, Order(1, old.attempt, second.claim.parameters, epoch=9, slot=0))
    # Even what it wrote without looking does not count.
    rung = before[0].rungs[0].model_copy(update={"epoch": 3, "sequence": 99})
    library.write_rung(NAME, 0, old.attempt, rung)
    assert library.trials(NAME) == before
    Driver(new, FakeSlots(library)).run()
    assert len(library.models()) == 12
    check_consistent(library, spec)


def test_a_lost_claim_is_named(library: Library) -> None:
    search = begun(library, make_spec())
    for _ in range(3):
        search.propose()
    library.store.delete(names.claim(NAME, 1, 1))
    with pytest.raises(UserError, match=r"digits-0001/claim-1\.json: is missing"):
        make_search(library, make_spec())


def test_another_specification_under_the_same_name_is_refused(library: Library) -> None:
    began = remember(library, NAME, make_spec())
    allowed = make_spec(maxTrialCount=99, parallelTrialCount=7, maxFailedTrialCount=9, resourcesPerTrial={"cpu": 2})
    assert remember(library, NAME, allowed) == began
    other = make_spec(seed=1, trainer={"family": "resnet", "maxEpochs": 27})
    with pytest.raises(UserError) as caught:
        remember(library, NAME, other)
    assert caught.value.where == "spec.trainer, spec.seed"
    assert '"maxEpochs": 9' in caught.value.problem
    assert remember(library, NAME, make_spec()) == began


def test_checkpoints_outlive_no_trial(library: Library, tmp_path: Path) -> None:
    search = begun(library, make_spec())
    ended, going = search.propose(), search.propose()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "weights").write_bytes(b"w")
    for trial in (ended, going):
        library.save_checkpoint(NAME, trial.number, search.attempt, 1, tmp_path / "saved")
    search.record_failure(ended, Broken("Raised", "x", 0.0, 1.0), 0)
    make_search(library, make_spec()).drop_leftovers()  # by a driver that finds nothing to do and begins no attempt
    assert library.load_checkpoint(NAME, ended.number, tmp_path / "loaded") is None
    assert library.load_checkpoint(NAME, going.number, tmp_path / "loaded") == 1
