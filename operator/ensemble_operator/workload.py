"""Starts of a workload: under which name it runs now, and what becomes of earlier ones.

Everything is read from the workload's own objects. A start is known by its specification's ConfigMap, which nobody can
change; it is named after all that it depends on, and numbered when it has to be tried again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pydantic import ValidationError

from ensemble_core.api.common import API_VERSION, Quality, Status, Workload
from ensemble_core.api.ensembledeployment import EnsembleDeployment
from ensemble_core.api.ensembleselection import EnsembleSelection
from ensemble_core.api.hposearch import HPOSearch
from ensemble_operator import reasons, verdicts
from ensemble_operator.differences import APPLIED, stamped
from ensemble_operator.identity import identity, report_name, service_account, spec_name, specification
from ensemble_operator.jobs import Outcome, build_job, outcome, trouble_in
from ensemble_operator.names import (
    ATTEMPT,
    BASIS,
    CHILD,
    COMPONENT,
    LIBRARY_FINALIZER,
    RAYJOB_LIMIT,
    SEEN,
    SPEC_HASH,
    Component,
    Owner,
    child_name,
    text_hash,
)
from ensemble_operator.pods import SPEC_KEY, pod_spec, spec_volume, template, token_volume
from ensemble_operator.readings import has_begun, pods_of, read_time
from ensemble_operator.reports import Report, read_report, typed
from ensemble_operator.settings import Settings
from ensemble_operator.status import OF_EVERY_KIND, conditions_of, fields_of
from ensemble_operator.storages import Document, Resolved, essence, resolve
from ensemble_operator.verdicts import Verdicts
from ensemble_operator.world import Decision, Manifest, Ref, World

FIRST_PAUSE = 10.0  # seconds before a lost workload is started again; each loss doubles it
LAST_PAUSE = 300.0
LOOK_AGAIN = 30.0  # seconds, while something may change of which no event tells


@dataclass(frozen=True)
class Wish:
    """What is to be run.

    Args:
        component: Of its labels.
        verb: Of its command, as it will report it.
        resolved: What it reads.
        spec_hash: Changes with the specification and with how pods are made; never with images.
        basis: The same with all else that a result depends on: another basis is another workload.
        seen: The part of that which no object tells again, so that the start has to remember it.
    """

    component: Component
    verb: str
    resolved: Resolved
    spec_hash: str
    basis: str
    seen: str = ""


def wish(
    component: Component,
    verb: str,
    documents: Sequence[Document],
    spec: Workload,
    inputs: Sequence[str] = (),
    seen: str = "",
) -> Wish:
    """What is to be run, for a resource's `spec`.

    Args:
        component: Of its labels.
        verb: Of its command.
        documents: What it reads.
        spec: How its pods are made.
        inputs: What a result depends on beside the documents.
        seen: The same, for the start to remember.

    Raises:
        UserError: a storage that no pod can have.
    """
    named = hash_of(documents, spec)
    basis = _digest([named, *inputs, *([seen] if seen else [])])
    return Wish(component, verb, resolve(documents), named, basis, seen)


def hash_of(documents: Sequence[Document], spec: Workload) -> str:
    """Names documents, and how the pods that read them are made.

    What is as by default is left out: a release that adds a field with a default starts nothing again.
    """
    return _digest([essence(documents), spec.pod_overrides.essence(), spec.service_account_name])


@dataclass(frozen=True)
class Start:
    """One start of a workload.

    Args:
        child: Its name, and that of its Job or RayJob.
        created: When, as Kubernetes writes it; empty if it is only wanted.
        engine: `Job` or `RayJob`, if there is one.
    """

    child: str
    component: Component
    spec_hash: str
    basis: str
    attempt: int
    outcome: Outcome
    report: Report | None = None
    created: str = ""
    engine: str | None = None
    seen: str = ""

    @property
    def annotations(self) -> dict[str, str]:
        seen = {SEEN: self.seen} if self.seen else {}
        return {SPEC_HASH: self.spec_hash, BASIS: self.basis, ATTEMPT: str(self.attempt), **seen}


def starts(world: World[Any], component: Component, verb: str) -> list[Start]:
    """All starts whose specification is still there, the newest first."""
    maps = [m for m in world.of_kind("ConfigMap") if m["metadata"]["labels"].get(COMPONENT) == component]
    found = [start for m in maps if (start := _start(world, m, component, verb)) is not None]
    return sorted(found, key=lambda start: (start.created, start.attempt, start.child), reverse=True)


def current(world: World[Any], wanted: Wish, known: Sequence[Start], go_on: bool = True) -> Start:
    """The start that should be there now: the last one of this basis, or the next attempt if that one was lost.

    Args:
        go_on: Whether there may be another attempt.
    """
    owner_name = world.body["metadata"]["name"]
    last = max((s for s in known if s.basis == wanted.basis), key=lambda start: start.attempt, default=None)
    if last is None:
        attempt = 1
    elif go_on and last.outcome.state == "Lost" and pause(world, last) <= 0:
        attempt = last.attempt + 1
    else:
        return last
    suffix = f"{wanted.component}-{wanted.basis[:8]}" + (f"-{attempt}" if attempt > 1 else "")
    child = child_name(owner_name, suffix, RAYJOB_LIMIT)
    absent = Outcome("Absent")
    return Start(child, wanted.component, wanted.spec_hash, wanted.basis, attempt, absent, seen=wanted.seen)


def pause(world: World[Any], start: Start) -> float:
    """Seconds until a lost workload is started again."""
    return (_resumes(world, start) - world.now).total_seconds()


def _resumes(world: World[Any], start: Start) -> datetime:
    length = timedelta(seconds=min(FIRST_PAUSE * 2 ** min(start.attempt - 1, 16), LAST_PAUSE))
    since = start.outcome.ended or read_time(start.created)
    return world.now if since is None else since + length


def look_again(world: World[Any], wish: float | None) -> float | None:
    """Seconds until the next look: as wished, or earlier if something is to be told before."""
    moments = (wish, trouble_in(world.of_kind("Pod"), world.now))
    return min((moment for moment in moments if moment is not None), default=None)


def objects(owner: Owner, start: Start, resolved: Resolved, given_account: str | None) -> tuple[Manifest, ...]:
    """What a start needs before its Job or RayJob is made."""
    text = resolved.text
    return (
        specification(owner, start.component, start.child, text, start.annotations),
        *identity(owner, start.component, start.child, given_account),
    )


def reporting_job(
    owner: Owner,
    start: Start,
    resolved: Resolved,
    spec: Workload,
    settings: Settings,
    main: Manifest,
    *,
    init_containers: Sequence[Manifest] = (),
    volumes: Sequence[Manifest] = (),
    deadline_seconds: int | None = None,
) -> Manifest:
    """The Job of a start, of one pod whose main container reads the specification, touches storage and reports."""
    pod = pod_spec(
        settings,
        spec.pod_overrides,
        service_account(start.child, spec.service_account_name),
        [main],
        init_containers=init_containers,
        volumes=[spec_volume(spec_name(start.child)), *resolved.volumes, token_volume(), *volumes],
    )
    made = template(owner, start.component, spec.pod_overrides, pod, child=start.child)
    return build_job(
        owner,
        start.component,
        start.child,
        made,
        annotations=start.annotations,
        deadline_seconds=deadline_seconds,
    )


def runnable(world: World[Any], start: Start, job: Manifest) -> tuple[Manifest, ...]:
    """The Job or RayJob of a start that has not ended; none to have one deleted that should be made differently now.

    Nobody can change a Job's pods, so one that has never begun, for its image or its queue is wrong, makes room for one
    that may. What it was made as tells its annotation, whatever others have written into it since.
    """
    present = world.child(start.engine, start.child) if start.engine else None
    if present is None or start.report is not None or start.outcome.state != "Waiting":
        return (job,)
    pods, goes = pods_of(world.of_kind("Pod"), CHILD, start.child), any(ref.kind == "Pod" for ref in world.deleting)
    made = (present["metadata"].get("annotations") or {}).get(APPLIED)
    same = made in (None, stamped(job)["metadata"]["annotations"][APPLIED])
    return (job,) if same or goes or has_begun(present, pods) else ()


def kept(start: Start, known: Sequence[Start], failed: bool = True) -> frozenset[Ref]:
    """What stays beside the objects of the present start: its Job that has ended, and all of the one before but rights.

    What still runs for an earlier specification is not kept: it is stopped.

    Args:
        failed: Whether a Job that has failed stays, for its logs.
    """
    before = next((other for other in known if other.child != start.child), None)
    stay = {_ended(start)} if failed or start.outcome.state == "Succeeded" else set()
    return frozenset(ref for ref in stay if ref is not None) | (remains(before) if before is not None else frozenset())


def maps(start: Start | None) -> frozenset[Ref]:
    """The ConfigMaps of a start: what it has told is read from them."""
    if start is None:
        return frozenset()
    return frozenset(Ref("ConfigMap", name) for name in (spec_name(start.child), report_name(start.child)))


def remains(start: Start) -> frozenset[Ref]:
    """What tells of a start that has ended: its ConfigMaps and its Job."""
    ended = _ended(start)
    return maps(start) | ({ended} if ended is not None else set())


# --- what all kinds say of their workloads --------------------------------------------------------------------------


def waiting(world: World[Any], start: Start) -> Verdicts:
    """Conditions while a workload has not begun, or is between two attempts."""
    outcome = start.outcome
    if outcome.state == "Lost":
        when = f"{_resumes(world, start):%H:%M:%S} UTC"
        message = f"attempt {start.attempt} was lost: {outcome.message}; the next one continues at {when}"
        # One that never got as far as its first report will hardly do better next time.
        return verdicts.progressing(reasons.LOST, message, outcome.blocked or start.report is None)
    if outcome.state == "Waiting":
        return verdicts.progressing(outcome.reason, outcome.message, outcome.blocked)
    return verdicts.progressing(reasons.STARTING, f"{start.child} is being started")


def advice(start: Start) -> str:
    """How to have a failed workload tried again, where every field of its specification can be changed."""
    return f"change the specification, or delete {start.engine} {start.child} to have it tried again as it is"


def report_missing(start: Start) -> str:
    """Of a workload that has ended well and left no report that can be read."""
    return (
        f"{start.engine} {start.child} has ended, but ConfigMap {report_name(start.child)} holds no report of it;"
        f" delete {start.engine} {start.child} to have it run again: what is done is not done twice"
    )


def refused(world: World[Any], message: str, finalizer: bool = False) -> Decision:
    """The decision where the specification asks for what cannot be: everything stays as it is.

    Args:
        finalizer: Whether one that is there stays; what has never been right has nothing to hold.
    """
    return Decision(
        (),
        verdicts.undecided(world.body, reasons.INVALID_SPEC, message),
        fields_of(world.body),
        keep=frozenset(world.children),
        finalizer=finalizer and LIBRARY_FINALIZER in world.body["metadata"].get("finalizers", ()),
    )


def filled(content: Status) -> dict[str, Any]:
    """A status as JSON, without what every status has and what is empty."""
    given = content.document()
    return {key: value for key, value in given.items() if key not in OF_EVERY_KIND and value != []}


def told(content: Callable[[], Status]) -> dict[str, Any]:
    """The status that a report gives; nothing if what it says cannot stand in one."""
    try:
        return filled(content())
    except ValidationError:
        return {}


def quality(metrics: Mapping[str, Any]) -> Quality | None:
    """The metrics of quality among those that a report has; none if one of them is no metric."""
    names = {info.alias or name for name, info in Quality.model_fields.items()}
    return typed(Quality, {name: value for name, value in metrics.items() if name in names})


Other = TypeVar("Other", HPOSearch, EnsembleSelection, EnsembleDeployment)


def parsed(model: type[Other], manifest: Manifest) -> Other | None:
    """Another custom resource, or none if it is not valid."""
    given = {
        "apiVersion": API_VERSION,
        "kind": manifest.get("kind"),
        "metadata": {"name": manifest["metadata"]["name"]},
        "spec": manifest.get("spec"),
    }
    try:
        return model.model_validate_json(json.dumps(given), strict=True)
    except ValidationError:
        return None


def brief(value: float) -> float:
    """With four digits, for a printer column; the exact figure stands elsewhere in the status."""
    return float(f"{value:.4g}")


def is_ready(manifest: Manifest) -> bool:
    """Whether a custom resource says that its result is there, for the specification that it has now."""
    ready = (one for one in conditions_of(manifest) if (one["type"], one["status"]) == ("Ready", "True"))
    return any(is_told_now(manifest, one) for one in ready)


def is_told_now(manifest: Manifest, condition: Manifest) -> bool:
    """Whether a condition of a custom resource is about the specification that it has now."""
    return bool(condition.get("observedGeneration") == manifest["metadata"].get("generation"))


def _ended(start: Start) -> Ref | None:
    if start.engine is None or start.outcome.active:
        return None
    return Ref(start.engine, start.child)


def _start(world: World[Any], config_map: Manifest, component: Component, verb: str) -> Start | None:
    metadata = config_map["metadata"]
    noted = metadata.get("annotations") or {}
    child = metadata["labels"].get(CHILD, "")
    if metadata["name"] != spec_name(child) or not noted.get(ATTEMPT, "").isdecimal():
        return None
    attempt = int(noted[ATTEMPT])
    text = (config_map.get("data") or {}).get(SPEC_KEY, "")
    uid = world.body["metadata"]["uid"]
    report = read_report(world.child("ConfigMap", report_name(child)), verb, text_hash(text), uid, attempt)
    job = world.child("RayJob", child) or world.child("Job", child)
    pods = [one for place, one in sorted({**world.children, **world.deleting}.items()) if place.kind == "Pod"]
    return Start(
        child=child,
        component=component,
        spec_hash=noted.get(SPEC_HASH, ""),
        basis=noted.get(BASIS, ""),
        attempt=attempt,
        outcome=outcome(job, report, pods_of(pods, CHILD, child), world.now),
        report=report,
        created=metadata.get("creationTimestamp") or "",
        engine=None if job is None else job["kind"],
        seen=noted.get(SEEN, ""),
    )


def _digest(content: object) -> str:
    return text_hash(json.dumps(content, sort_keys=True))
