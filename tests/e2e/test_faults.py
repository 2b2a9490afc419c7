"""Harm done to a search: it goes on from its library, trains nothing twice, or says what a person should do."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.e2e.client_pod import Client
from tests.e2e.cluster import Manifest, Namespace, Told, conditions, until
from tests.e2e.conftest import Images, Release
from tests.e2e.documents import CLAIM, labelled, search
from tests.e2e.queues import queue_of, set_policy
from tests.e2e.storage import SECRET, give_keys, on_claim, serve_s3_with_keys, small_volume
from tests.e2e.test_digits import settled

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(1500)]

END_ALL = "import os, signal; os.kill(-1, signal.SIGKILL)"  # but the first, which ends by it, and this one
KIND, NAME = "HPOSearch", "digits"
TRAINING = "app.kubernetes.io/managed-by=ensemble-operator,app.kubernetes.io/component=train"
HEAD = f"{TRAINING},ray.io/node-type=head"
TRIAL_SECONDS = 300.0  # until another trial has ended, with the start of a pod and of Ray before it
READY_SECONDS = 600.0
TOLD_SECONDS = 240.0
GONE_SECONDS = 120.0
CALM_SECONDS = 20
MANY = 60  # trials of a second or some; reports of them come each ten seconds
NOWHERE = "registry.invalid/trainer:1"
RAY = {"engine": "rayjob", "workers": {"replicas": 1, "cpu": 1, "memoryMiB": 2048}}


@pytest.fixture
def queue(place: Namespace) -> Iterator[str]:
    """Name of a ClusterQueue; the namespace's LocalQueue `research` leads to it."""
    with queue_of(place) as name:
        yield name


def test_a_search_survives_whatever_is_deleted_under_it(place: Namespace, operator: Release, images: Images) -> None:
    """In one search of trials of some seconds: its pod evicted, its report changed and deleted, the operator killed,
    its Job deleted. In the end its library goes with it."""
    with operator.explained(place):
        place.apply(CLAIM)
        before, client = settled(place), on_claim(place, images)
        library = {"storage": {"persistentVolumeClaim": {"claimName": "libraries", "subPath": "digits"}}}
        place.apply(search(MANY, library={**library, "deletionPolicy": "Delete"}))
        trained = [wait_trials(place, 1)]
        [pod] = names(place, "pods")
        place.evict(pod)
        trained.append(wait_trials(place, trained[-1] + 1))
        [job] = place.list("jobs", TRAINING)
        assert not job["status"].get("failed"), "an eviction is no failure"
        assert status_of(place)["attempt"] == 2

        child = job["metadata"]["name"]
        forge(place, f"{child}-report", "9999")
        until("the forged report is overwritten", 60, lambda: status_of(place).get("trialsSucceeded") != 9999 or None)
        place.kubectl("delete", "configmap", f"{child}-report")
        operator.kill()
        trained.append(wait_trials(place, trained[-1] + 1))

        place.kubectl("delete", "job", child)
        trained.append(wait_trials(place, trained[-1] + 1))
        assert names(place, "jobs") == [f"{child}-2"]

        last = place.wait_ready(KIND, NAME, READY_SECONDS)["status"]
        assert (last["trials"], last["trialsSucceeded"], last["trialsFailed"], last["attempt"]) == (MANY, MANY, 0, 3)
        check_trained_once(client, MANY, trained[0], trained[2])
        print(client.verify())

        place.kubectl("delete", KIND, NAME, "--timeout=120s")
        place.wait_only(before, GONE_SECONDS)
        assert client.run("find", "/library", "-type", "f").split() == []


def test_a_ray_job_survives_preemption_and_the_loss_of_its_head(
    place: Namespace, operator: Release, images: Images, queue: str
) -> None:
    with operator.explained(place):
        place.apply(CLAIM, labelled(search(MANY, **RAY), **{"kueue.x-k8s.io/queue-name": "research"}))
        set_policy(queue, "None")
        wait_trials(place, 1)
        set_policy(queue, "HoldAndDrain")
        place.wait_told(KIND, NAME, Told("Progressing", "True", "Queued", ("research",)), 120)
        until("its pods are gone", 90, lambda: True if not place.list("pods", TRAINING) else None)
        assert conditions(place.get(KIND, NAME) or {})["Degraded"]["status"] == "False"
        first, client = status_of(place)["trialsSucceeded"], on_claim(place, images)
        set_policy(queue, "None")
        until("the second attempt has trained", TRIAL_SECONDS, lambda: 2 in attempts(client) or None)
        second = wait_trials(place, first + 1)
        [head] = [pod["metadata"]["name"] for pod in place.pods(HEAD)]
        place.kubectl("exec", head, "--", "python", "-c", END_ALL)  # a deleted pod has its grace, and could finish
        last = place.wait_ready(KIND, NAME, READY_SECONDS)["status"]
        assert (last["trials"], last["trialsSucceeded"], last["trialsFailed"]) == (MANY, MANY, 0)
        assert last["attempt"] == 3
        check_trained_once(client, MANY, first, second)


def test_keys_that_are_missing_or_wrong(place: Namespace, operator: Release, images: Images) -> None:
    with operator.explained(place):
        keys = serve_s3_with_keys(place, images)
        s3 = {"bucket": "libraries", "prefix": "digits", "endpoint": "http://s3:9000", "region": "us-east-1"}
        place.apply(search(2, library={"storage": {"s3": s3, "credentialsSecretRef": {"name": SECRET}}}))
        missing = Told("Degraded", "True", "ContainerConfigFailed", (f'secret "{SECRET}" not found',))
        place.wait_told(KIND, NAME, missing, TOLD_SECONDS)
        give_keys(place, {**keys, "AWS_SECRET_ACCESS_KEY": "mistyped"})
        wrong = Told("Degraded", "True", "TrainingFailed", ("credentialsSecretRef", "denied", "delete Job"))
        failed = place.wait_told(KIND, NAME, wrong, TOLD_SECONDS)
        text = json.dumps([failed, place.list("configmaps"), place.list("events")])
        assert "mistyped" not in text
        assert keys["AWS_SECRET_ACCESS_KEY"] not in text
        give_keys(place, keys)
        place.kubectl(*advised(failed))
        assert place.wait_ready(KIND, NAME, READY_SECONDS)["status"]["trialsSucceeded"] == 2


def test_a_volume_that_is_full(place: Namespace, operator: Release, images: Images) -> None:
    with operator.explained(place), small_volume(place, images, 64) as room:
        place.apply(search(6))
        first = wait_trials(place, 1)
        room.fill()
        place.wait_told(KIND, NAME, Told("Degraded", "True", "Interrupted", ("is full",)), TOLD_SECONDS)
        room.clear()
        last = place.wait_ready(KIND, NAME, READY_SECONDS)["status"]
        assert (last["trials"], last["trialsSucceeded"], last["trialsFailed"]) == (6, 6, 0)
        client = on_claim(place, images)
        check_trained_once(client, 6, first)
        print(client.verify())


def test_an_image_that_cannot_be_pulled(place: Namespace, operator: Release, images: Images) -> None:
    with operator.explained(place):
        place.apply(CLAIM)
        try:
            Release(replace(images, trainer=NOWHERE)).install(scope="cluster")
            place.apply(search(1))
            place.wait_told(
                KIND, NAME, Told("Degraded", "True", "ImagePullFailed", (NOWHERE, "imagePullSecrets")), TOLD_SECONDS
            )
        finally:
            operator.install(scope="cluster")
        assert place.wait_ready(KIND, NAME, READY_SECONDS)["status"]["trialsSucceeded"] == 1


def test_a_namespace_that_is_deleted_midway(place: Namespace, operator: Release) -> None:
    with operator.explained(place):
        restarts = operator.restarts()
        place.apply(CLAIM)
        storage = {"persistentVolumeClaim": {"claimName": "libraries", "subPath": "digits"}}
        place.apply(search(12, library={"storage": storage, "deletionPolicy": "Delete"}))
        wait_trials(place, 1)
        place.kubectl("delete", "namespace", place.name, f"--timeout={GONE_SECONDS:g}s", seconds=GONE_SECONDS + 30)
        time.sleep(CALM_SECONDS)
        assert operator.complaints(CALM_SECONDS) == []
        assert operator.restarts() == restarts


def test_foreground_deletion_takes_the_library_along(place: Namespace, operator: Release, images: Images) -> None:
    """Kubernetes deletes children first then, and the search before its library is gone must not be among the lost."""
    with operator.explained(place):
        place.apply(CLAIM)
        before, client = settled(place), on_claim(place, images)
        storage = {"persistentVolumeClaim": {"claimName": "libraries", "subPath": "digits"}}
        place.apply(search(12, library={"storage": storage, "deletionPolicy": "Delete"}))
        wait_trials(place, 1)
        assert client.run("find", "/library", "-type", "f").split()
        place.kubectl("delete", KIND, NAME, "--cascade=foreground", "--timeout=120s", seconds=150)
        place.wait_only(before, GONE_SECONDS)
        assert client.run("find", "/library", "-type", "f").split() == []


# --- what is looked at ----------------------------------------------------------------------------------------------


def status_of(namespace: Namespace) -> Manifest:
    status: Manifest = (namespace.get(KIND, NAME) or {}).get("status", {})
    return status


def wait_trials(namespace: Namespace, count: int) -> int:
    """How many trials are told to have ended, once it is so many, and before all have."""

    def look() -> int | None:
        namespace.show()
        ended = status_of(namespace).get("trialsSucceeded", 0)
        return ended if ended >= count else None

    ended = until(f"{count} trials have ended", TRIAL_SECONDS, look)
    wanted = (namespace.get(KIND, NAME) or {})["spec"]["maxTrialCount"]
    assert ended < wanted, "the search was over before any harm was done"
    return ended


def names(namespace: Namespace, kind: str) -> list[str]:
    """Of what trains and is not about to go."""
    found = [one["metadata"] for one in namespace.list(kind, TRAINING)]
    return sorted(metadata["name"] for metadata in found if "deletionTimestamp" not in metadata)


def attempts(client: Client) -> set[int]:
    """Which attempts have trained the models that there are."""
    return {record["origin"]["attempt"] for record in client.models()}


def check_trained_once(client: Client, trials: int, *ended: int) -> None:
    """Every trial has one model, and what had ended before an attempt was over was left alone by the next.

    Args:
        ended: How many trials had ended before each new attempt at least.
    """
    records = client.models()
    origins = [record["origin"] for record in records]
    assert sorted(origin["trial"] for origin in origins) == list(range(trials))
    for attempt, count in enumerate(ended, 1):
        assert sum(origin["attempt"] <= attempt for origin in origins) >= count
    assert {origin["attempt"] for origin in origins} == set(range(1, len(ended) + 2))


def forge(namespace: Namespace, report: str, count: str) -> None:
    """Write into a report that so many trials have succeeded."""
    text = (namespace.get("configmap", report) or {})["data"]["report.json"]
    forged = re.sub(r'"succeeded": \d+', f'"succeeded": {count}', text)
    assert forged != text
    patch = json.dumps({"data": {"report.json": forged}})
    namespace.kubectl("patch", "configmap", report, "--type=merge", "--patch", patch)
    until(
        "the forged report is believed", 30, lambda: status_of(namespace).get("trialsSucceeded") == int(count) or None
    )


def advised(resource: Manifest) -> list[str]:
    """The command that a condition asks for."""
    told = conditions(resource)["Degraded"]["message"]
    match = re.search(r"delete Job (\S+) to have it tried again", told)
    assert match, told
    return ["delete", "job", match[1]]
