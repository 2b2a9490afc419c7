"""What the operator tells: conditions, events, logs and metrics; and what it is told by its environment."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from tests.handler.fake import verdicts

from ensemble_core.api.common import Condition
from ensemble_core.errors import UserError
from ensemble_operator import logs
from ensemble_operator.events import transitions
from ensemble_operator.metrics import GAUGES, Metrics, samples
from ensemble_operator.queue import Key
from ensemble_operator.settings import VARIABLES, Settings, settings_from
from ensemble_operator.status import conditions, timestamp
from ensemble_operator.verdicts import degraded, undecided
from ensemble_operator.world import Verdict

NOW, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
BODY = {
    "apiVersion": "ensemble-operator.io/v1alpha1",
    "kind": "HPOSearch",
    "metadata": {"name": "digits", "namespace": "lab", "uid": "1", "resourceVersion": "5", "generation": 1},
}

# ------------------------------------------------------------ conditions


def test_a_condition_keeps_its_time_as_long_as_its_status() -> None:
    first = conditions([], verdicts(False, "Training", "1/4"), 1, NOW)
    second = conditions(first, verdicts(False, "Waiting", "2/4"), 2, LATER)
    third = conditions(second, verdicts(True, "Trained"), 2, LATER)
    assert [one["lastTransitionTime"] for one in second] == [timestamp(NOW)] * 3
    assert [one["lastTransitionTime"] for one in third] == [timestamp(LATER), timestamp(LATER), timestamp(NOW)]
    assert {one["observedGeneration"] for one in second} == {2}


@given(st.text(max_size=6000))
def test_conditions_are_of_the_api(message: str) -> None:
    for one in conditions([], verdicts(True, "Done", message), 1, NOW):
        assert len(Condition.model_validate(one).message) <= 4096


def test_degraded_replaces_one_verdict() -> None:
    changed = degraded(verdicts(True, "Done"), "ApplyFailed", "quota")
    assert [one.reason for one in changed] == ["Done", "Done", "ApplyFailed"]


def test_what_is_wrong_is_why_something_is_not_ready() -> None:
    """`kubectl get` shows the reason of Ready alone."""
    changed = degraded(verdicts(False, "Starting", "0/4"), "ApplyFailed", "quota")
    assert [(one.type, one.status, one.reason, one.message) for one in changed] == [
        ("Ready", "False", "ApplyFailed", "quota"),
        ("Progressing", "True", "Starting", "0/4"),
        ("Degraded", "True", "ApplyFailed", "quota"),
    ]
    body = BODY | {"status": {"conditions": conditions([], verdicts(False, "Training", "3 of 12"), 1, NOW)}}
    told = undecided(body, "InternalError", "a bug")[0]
    assert (told.status, told.reason, told.message) == ("False", "InternalError", "a bug")


def test_where_nothing_can_be_concluded_ready_stays() -> None:
    body = BODY | {"status": {"conditions": conditions([], verdicts(True, "Trained"), 1, NOW)}}
    assert [one.status for one in undecided(body, "InvalidSpec", "x")] == ["True", "False", "True"]
    assert [one.status for one in undecided(BODY, "InvalidSpec", "x")] == ["False", "False", "True"]


def test_what_was_ready_for_an_earlier_specification_is_not_for_this_one() -> None:
    changed = BODY | {"metadata": {**BODY["metadata"], "generation": 2}}  # type: ignore[dict-item]
    body = changed | {"status": {"conditions": conditions([], verdicts(True, "Trained"), 1, NOW)}}
    told = undecided(body, "InvalidSpec", "x")[0]
    assert (told.status, told.reason) == ("False", "InvalidSpec")


# ------------------------------------------------------------ events


def events(before: Any, after: Any, now: datetime = NOW) -> list[dict[str, Any]]:
    old = conditions([], before, 1, NOW) if before else []
    return transitions(BODY, old, conditions(old, after, 1, now), now)


def test_conditions_of_one_reason_are_one_event() -> None:
    assert [(one["reason"], one["type"]) for one in events(None, verdicts(False, "Training"))] == [
        ("Training", "Normal")
    ]


def test_a_condition_that_says_nothing_is_no_event() -> None:
    broken = (Verdict("Degraded", "True", "Broken", "x"),)
    assert events(broken, (Verdict("Degraded", "False", "AsExpected", ""),)) == []


def test_nothing_new_is_no_event() -> None:
    assert events(verdicts(False, "Training", "1/4"), verdicts(False, "Training", "2/4")) == []


def test_what_degrades_is_a_warning_even_if_ready_says_the_same() -> None:
    broken = (Verdict("Ready", "False", "Broken", "x"), Verdict("Degraded", "True", "Broken", "x"))
    assert [one["type"] for one in events(None, broken)] == ["Warning"]


def test_the_same_transition_has_the_same_name_whenever_it_is_told() -> None:
    arguments = verdicts(False, "Training"), verdicts(True, "Trained")
    assert events(*arguments)[0]["metadata"]["name"] == events(*arguments, LATER)[0]["metadata"]["name"]


def test_other_transitions_have_other_names() -> None:
    names = {
        events(before, after)[0]["metadata"]["name"]
        for before in (None, verdicts(False, "A"), verdicts(False, "B"))
        for after in (verdicts(True, "C"), verdicts(True, "D"))
    }
    assert len(names) == 6


@given(st.text(min_size=1, max_size=2000))
def test_notes_are_no_longer_than_the_server_takes(message: str) -> None:
    assert len(events(None, verdicts(True, "Done", message))[0]["note"].encode()) <= 1024


# ------------------------------------------------------------ logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure("info", stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


def test_a_line_is_json_with_the_object(stream: io.StringIO) -> None:
    logs.Log().of(Key("HPOSearch", "lab", "digits")).write("info", "applied Job digits\n1", attempt=2)
    assert stream.getvalue().count("\n") == 1
    line = json.loads(stream.getvalue())
    assert (line["level"], line["kind"], line["namespace"], line["name"]) == ("info", "HPOSearch", "lab", "digits")
    assert (line["message"], line["attempt"]) == ("applied Job digits\n1", 2)


def test_what_kopf_will_repeat_is_no_error(stream: io.StringIO) -> None:
    kopf = logging.getLogger("kopf._cogs.clients.watching")
    for words in ("Request attempt #1 failed; will retry: GET /", "Request attempt #9 failed; escalating: GET /"):
        kopf.error(words)
    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == ["warning", "error"]


def test_an_error_has_its_traceback_in_the_same_line(stream: io.StringIO) -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        logs.Log().write("error", "failed", error)
    assert stream.getvalue().count("\n") == 1
    assert "KeyError" in json.loads(stream.getvalue())["traceback"]


def test_quiet_below_its_level_and_about_libraries(stream: io.StringIO) -> None:
    logs.Log().write("debug", "nothing")
    logging.getLogger("kopf.activities").info("nothing")
    assert stream.getvalue() == ""


def test_text_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("ensemble-operator", logging.INFO, "", 0, "applied", (), None)
    record.fields = {"kind": "HPOSearch", "namespace": "lab", "name": "digits", "attempt": 2}
    assert logs.TextFormatter().format(record)[9:] == "info HPOSearch lab/digits: applied attempt=2"


# ------------------------------------------------------------ metrics


def test_samples_of_a_search() -> None:
    status = {"trialsSucceeded": 3, "trialsFailed": 0, "occupancyPercent": 96.0, "library": {"models": 7}}
    values = {(one.gauge, one.labels): one.value for one in samples("HPOSearch", status)}
    assert values["ensemble_search_trials", ("succeeded",)] == 3
    assert values["ensemble_search_trials", ("failed",)] == 0
    assert values["ensemble_search_occupancy_ratio", ()] == 0.96
    assert values["ensemble_library_models", ()] == 7
    assert ("ensemble_search_best_value", ()) not in values


def test_samples_of_the_other_kinds() -> None:
    selection = {"budgets": [{"name": "small", "memberCount": 2}, {"name": "none", "memberCount": 0}]}
    assert {one.labels: one.value for one in samples("EnsembleSelection", selection)} == {("small",): 2, ("none",): 0}
    deployment = {"members": 5, "performance": {"imagesPerSecond": 305.0}, "readyReplicas": 2}
    assert [one.value for one in samples("EnsembleDeployment", deployment)] == [5, 305.0, 2]
    assert samples("EnsembleDeployment", {}) == []


def test_prometheus_can_read_it() -> None:
    metrics = Metrics(lambda: 3)
    metrics.tell(Key("HPOSearch", "lab", "digits"), {"conditions": conditions([], verdicts(True, "Done"), 1, NOW)})
    metrics.reconciled("HPOSearch", "changed", 0.02)
    metrics.failed("HPOSearch", "refused")
    metrics.requested("list", 200)
    text = generate_latest(metrics.registry).decode()
    assert "ensemble_operator_queue_depth 3.0" in text
    assert 'ensemble_condition{kind="HPOSearch",name="digits",namespace="lab",type="Ready"} 1.0' in text
    assert 'ensemble_operator_api_requests_total{code="200",verb="list"} 1.0' in text
    assert all(f"# HELP {name} " in text for name in GAUGES)


def test_what_is_told_of_resources_can_be_forgotten_at_once() -> None:
    metrics = Metrics()
    metrics.tell(Key("HPOSearch", "lab", "digits"), {"conditions": conditions([], verdicts(True, "Done"), 1, NOW)})
    metrics.requested("list", 200)
    metrics.forget_all()
    text = generate_latest(metrics.registry).decode()
    assert "ensemble_condition{" not in text
    assert 'ensemble_operator_api_requests_total{code="200",verb="list"} 1.0' in text


# ------------------------------------------------------------ settings

GIVEN = {"TRAINER_IMAGE": "trainer", "CORE_IMAGE": "core"}


def test_defaults() -> None:
    assert settings_from(GIVEN) == Settings(trainer_image="trainer", core_image="core")


def test_everything_given() -> None:
    given = {"WATCH_NAMESPACES": "a, b c", "IMAGE_PULL_SECRETS": "x", "WORKERS": "2", "METRICS_PORT": "0"}
    settings = settings_from(GIVEN | given | {"RESYNC_SECONDS": "60", "LOG_LEVEL": "debug", "HEALTH_PORT": ""})
    assert settings.namespaces == ("a", "b", "c")
    assert settings.image_pull_secrets == ("x",)
    assert (settings.workers, settings.metrics_port, settings.health_port) == (2, 0, 8081)
    assert (settings.resync_seconds, settings.log_level) == (60.0, "debug")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRAINER_IMAGE", ""),
        ("CORE_IMAGE", ""),
        ("WORKERS", "0"),
        ("WORKERS", "1.5"),
        ("METRICS_PORT", "65536"),
        ("HEALTH_PORT", "-1"),
        ("RESYNC_SECONDS", "nan"),
        ("RESYNC_SECONDS", "0"),
        ("IMAGE_PULL_POLICY", "Sometimes"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_wrong_values_are_told_by_name(name: str, value: str) -> None:
    with pytest.raises(UserError) as raised:
        settings_from(GIVEN | {name: value})
    assert raised.value.where == name
    assert name in VARIABLES
