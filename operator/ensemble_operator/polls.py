"""Looks at storages that no search tells of: a small Job that tells what the libraries are, again and again.

A selection that has ended has one poll, which is made after it and so never tells of an earlier time. The poll's Job
goes by itself after `pollIntervalSeconds` and is made again; what it told last stays in the poll's report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from ensemble_core.api.ensembleselection import EnsembleSelection, EnsembleSelectionSpec
from ensemble_core.frozen import digest
from ensemble_operator import reasons, verdicts, workload
from ensemble_operator.identity import report_name
from ensemble_operator.jobs import pod_trouble
from ensemble_operator.names import CHILD, Component, Owner
from ensemble_operator.pods import Resources, command, report_env, workload_container
from ensemble_operator.readings import pods_of
from ensemble_operator.reports import Untrusted, typed
from ensemble_operator.selection_status import Source, result_of
from ensemble_operator.settings import Settings
from ensemble_operator.storages import Document, Resolved
from ensemble_operator.verdicts import Verdicts
from ensemble_operator.workload import Start
from ensemble_operator.world import Manifest, Ref, World

POLL: Component = "poll"
POLLER = Resources(cpu=0.05, memory=256, memory_limit=1024)


class PollSummary(Untrusted):
    """What a poll tells at its end."""

    sources: Annotated[list[Source], Field(max_length=16)]


def poll_of(world: World[EnsembleSelection], start: Start, documents: Sequence[Document]) -> Start | None:
    """The poll of a selection's start; none while that goes on, and where nothing is to be found out."""
    spec = world.resource.spec
    polled = spec.update_policy.mode == "OnLibraryChange" and any(source.storage for source in spec.sources)
    if not polled or start.outcome.state not in ("Succeeded", "Failed"):
        return None
    wanted = workload.wish(POLL, POLL, documents, spec, [start.child])
    return workload.current(world, wanted, workload.starts(world, POLL, POLL), go_on=False)


def news(spec: EnsembleSelectionSpec, start: Start, poll: Start) -> str:
    """What a new start must remember as seen; empty if what the poll tells is what `start` was given, or found.

    A start that failed was given what a poll told before it; before the first there was none. Each of these has a
    number of its own: storages that are again as they were before make another start.
    """
    if poll.report is None or poll.report.state != "Succeeded":
        return ""
    summary, result = typed(PollSummary, poll.report.result.summary), result_of(start.report)
    told = _of_storages(spec, summary.sources if summary else [])
    found = _of_storages(spec, result.sources if result else [])
    number, _, given = start.seen.partition("-")
    if not told or told == (found or given):
        return ""
    return f"{int(number) + 1 if number.isdecimal() else 1}-{told}"


def _of_storages(spec: EnsembleSelectionSpec, sources: Sequence[Source]) -> str:
    """Names what the libraries are that are given as storages; empty if that was not told of each source."""
    if len(sources) != len(spec.sources):
        return ""
    return digest([told.digest for told, source in zip(sources, spec.sources, strict=True) if source.storage])


def told(world: World[EnsembleSelection], poll: Start, conditions: Verdicts) -> Verdicts:
    """The conditions, with what a person should mend so that there are polls."""
    trouble = pod_trouble(pods_of(world.of_kind("Pod"), CHILD, poll.child), world.now)
    failed = poll.report is not None and poll.report.state == "Failed"
    problem = poll.report.error.text() if failed and poll.report else trouble.message if trouble else ""
    if not problem or conditions[2].status == "True" or not (failed or (trouble and trouble.blocked)):
        return conditions
    message = f"it is not known whether storages have changed: {problem}"
    return verdicts.degraded(conditions, reasons.SOURCES_NOT_READY, message)


def objects(world: World[EnsembleSelection], owner: Owner, poll: Start, resolved: Resolved) -> Iterator[Manifest]:
    """What a poll needs, and its Job, but while the one before it is being deleted: that is nothing to wait for."""
    spec = world.resource.spec
    yield from workload.objects(owner, poll, resolved, spec.service_account_name)
    if Ref("Job", poll.child) not in world.deleting:
        yield from workload.runnable(world, poll, poll_job(owner, poll, resolved, spec, world.settings))


def poll_job(
    owner: Owner, poll: Start, resolved: Resolved, spec: EnsembleSelectionSpec, settings: Settings
) -> Manifest:
    """The Job that looks once: too small for queues, and without the resources that a selection may be given."""
    unqueued = replace(owner, queue={})
    main = workload_container(
        "ensemble",
        settings.core_image,
        settings,
        POLLER,
        resolved,
        command=command(["select"], owner, report_name(poll.child), ["--poll"]),
        env=report_env(owner, poll.attempt),
        reports=True,
    )
    modest = spec.model_copy(update={"pod_overrides": spec.pod_overrides.model_copy(update={"resources": None})})
    job = workload.reporting_job(unqueued, poll, resolved, modest, settings, main)
    # Kubernetes deletes it then, and that is when the next one is made.
    return {**job, "spec": {**job["spec"], "ttlSecondsAfterFinished": spec.update_policy.poll_interval_seconds}}
