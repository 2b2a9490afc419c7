"""The end of a search: with `deletionPolicy: Delete` its library goes first, once nobody needs or writes it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from ensemble_core.api.common import Storage
from ensemble_core.api.ensembledeployment import EnsembleDeployment
from ensemble_core.api.ensembleselection import EnsembleSelection
from ensemble_core.api.hposearch import HPOSearch, HPOSearchSpec
from ensemble_operator import reasons, verdicts, workload
from ensemble_operator.differences import is_deleting
from ensemble_operator.identity import report_name
from ensemble_operator.names import COMPONENT, LIBRARY_FINALIZER, Component, Owner, owner_of
from ensemble_operator.pods import (
    Resources,
    command,
    report_env,
    workload_container,
)
from ensemble_operator.settings import Settings
from ensemble_operator.status import conditions_of, fields_of
from ensemble_operator.storages import Resolved, reference, resolve
from ensemble_operator.training import TRAIN
from ensemble_operator.verdicts import Verdicts
from ensemble_operator.workload import LOOK_AGAIN, Start, Wish
from ensemble_operator.world import NAMESPACE_GOES, Decision, Manifest, World

DELETE: Component = "delete"
DELETE_VERB = "delete"
DELETE_SECONDS = 3600
DELETER = Resources(cpu=0.1, memory=256, memory_limit=1024)


def end_search(world: World[HPOSearch]) -> Decision:
    """The end of a search: with `deletionPolicy: Delete` its library goes first, once nobody needs or writes it."""
    resource = world.resource
    if not deletes_library(resource) or LIBRARY_FINALIZER not in world.body["metadata"].get("finalizers", ()):
        return _let_go(world, "the library stays")
    if _namespace_goes(world.body):
        return _let_go(world, "the namespace is being deleted, in which no Job can delete the library any more")
    if users := users_of(world):
        message = (
            f"the library is still used by {', '.join(users)}; delete these first,"
            " or set spec.library.deletionPolicy: Retain to keep the library"
        )
        return _held(world, verdicts.stopped(reasons.LIBRARY_IN_USE, message, degraded=True))
    owner, spec = owner_of(resource, world.body), resource.spec
    wanted = delete_wish(resource)
    known = workload.starts(world, DELETE, DELETE_VERB)
    if not known and _is_training(world):
        message = "waits until the pods that write the library have ended"
        return _held(world, verdicts.progressing(reasons.DELETING_LIBRARY, message))
    start = workload.current(world, wanted, known)
    if start.outcome.state == "Succeeded":
        return _let_go(world, "the library is deleted")
    job = delete_job(owner, start, wanted.resolved, spec, world.settings)
    return Decision(
        objects=(
            *workload.objects(owner, start, wanted.resolved, spec.service_account_name),
            *(workload.runnable(world, start, job) if start.outcome.wanted else ()),
        ),
        keep=workload.kept(start, known),
        conditions=_conclude_deletion(world, start),
        status=fields_of(world.body),
        finalizer=True,
        again_after=workload.look_again(world, LOOK_AGAIN),
    )


def _conclude_deletion(world: World[HPOSearch], start: Start) -> Verdicts:
    outcome = start.outcome
    if outcome.state == "Failed":
        message = (
            f"{outcome.message}\n{workload.advice(start)},"
            " or set spec.library.deletionPolicy: Retain to leave what is left of the library"
        )
        return verdicts.stopped(reasons.LIBRARY_DELETION_FAILED, message, degraded=True)
    if outcome.state == "Waiting" and outcome.blocked:
        return workload.waiting(world, start)
    return verdicts.progressing(reasons.DELETING_LIBRARY, "the library is being deleted")


def _let_go(world: World[HPOSearch], message: str) -> Decision:
    """The search may go. Its children go with it, not before: without its Job the library would be deleted again."""
    conditions = verdicts.progressing(reasons.DELETING_LIBRARY, message)
    return Decision((), conditions, fields_of(world.body), keep=frozenset(world.children))


def _held(world: World[HPOSearch], conditions: Verdicts) -> Decision:
    return Decision(
        (),
        conditions,
        fields_of(world.body),
        finalizer=True,
        again_after=5.0 if world.deleting else LOOK_AGAIN,
    )


def users_of(world: World[HPOSearch]) -> list[str]:
    """The selections of the namespace that need models of this search, and the deployments that serve what they found.

    What cannot be read may, and so may a deployment whose selection is not there any more. Searches that share the
    library need none: of a shared library only this search's own models go.
    """
    storage = world.resource.spec.library.storage
    alive = {ref: manifest for ref, manifest in sorted(world.others.items()) if not is_deleting(manifest)}
    sharing = {world.resource.metadata.name}
    for ref, manifest in alive.items():
        search = workload.parsed(HPOSearch, manifest) if ref.kind == "HPOSearch" else None
        sharing |= {ref.name} if search is not None and search.spec.library.storage == storage else set()
    selections = {ref: manifest for ref, manifest in alive.items() if ref.kind == "EnsembleSelection"}
    using = [ref for ref, manifest in selections.items() if _uses(manifest, storage, sharing)]
    harmless = {ref.name for ref in selections.keys() - using}
    deployments = {ref: manifest for ref, manifest in alive.items() if ref.kind == "EnsembleDeployment"}
    serving = [ref for ref, manifest in deployments.items() if _selection_of(manifest) not in harmless]
    return [f"{ref.kind} {ref.name}" for ref in (*using, *serving)]


def _selection_of(manifest: Manifest) -> str | None:
    deployment = workload.parsed(EnsembleDeployment, manifest)
    return None if deployment is None else deployment.spec.selection_ref.name


def _uses(manifest: Manifest, storage: Storage, sharing: Set[str]) -> bool:
    selection = workload.parsed(EnsembleSelection, manifest)
    if selection is None:
        return True
    sources = selection.spec.sources
    from_it = any(source.storage == storage or source.hpo_search_name in sharing for source in sources)
    return from_it or selection.spec.library == storage


def _is_training(world: World[HPOSearch]) -> bool:
    """Whether anything that writes the library is still there, or about to go."""
    alive = [one for kind in ("Job", "RayJob", "Pod") for one in world.of_kind(kind)]
    writes = any(one["metadata"]["labels"].get(COMPONENT) == TRAIN for one in alive if not _has_ended(one))
    return writes or any(ref.kind in ("Job", "RayJob", "Pod") for ref in world.deleting)


def _has_ended(manifest: Manifest) -> bool:
    return manifest["kind"] == "Pod" and (manifest.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def delete_wish(search: HPOSearch) -> Wish:
    """The library's deletion; of a search nothing else counts, for it may be what was refused."""
    return workload.wish(DELETE, DELETE_VERB, resolve([reference(search)]), search.spec)


def delete_job(owner: Owner, start: Start, resolved: Resolved, spec: HPOSearchSpec, settings: Settings) -> Manifest:
    """The Job that deletes a library; it gives up after a while."""
    main = workload_container(
        "ensemble",
        settings.trainer_image,
        settings,
        DELETER,
        resolved,
        command=command(["library", "delete"], owner, report_name(start.child)),
        env=report_env(owner, start.attempt),
        reports=True,
    )
    # Nothing of the overrides' resources: those are for training.
    overrides = spec.pod_overrides.model_copy(update={"resources": None})
    return workload.reporting_job(
        replace(owner, queue={}),  # not queued: it is small, and must not wait
        start,
        resolved,
        spec.model_copy(update={"pod_overrides": overrides}),
        settings,
        main,
        deadline_seconds=DELETE_SECONDS,
    )


def _namespace_goes(body: Manifest) -> bool:
    """Whether the server has refused an object for that reason; holding on would hold the namespace for ever."""
    return any(
        one["reason"] == reasons.APPLY_FAILED and NAMESPACE_GOES in one["message"] for one in conditions_of(body)
    )


def deletes_library(search: HPOSearch) -> bool:
    return search.spec.library.deletion_policy == "Delete"
