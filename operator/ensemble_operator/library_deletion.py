"""The end of a search: with `deletionPolicy: Delete` its library goes first, once nobody needs or writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ensemble_core.api.common import Storage
from ensemble_core.api.ensembledeployment import EnsembleDeployment
from ensemble_core.api.ensembleselection import EnsembleSelection
from ensemble_core.api.hposearch import HPOSearch, HPOSearchSpec
from ensemble_operator import reasons, verdicts, workload
from ensemble_operator.differences import is_deleting
from ensemble_operator.identity import report_name
from ensemble_operator.leftovers import has_ended
from ensemble_operator.names import COMPONENT, LIBRARY_FINALIZER, Component, Owner, owner_of
from ensemble_operator.pods import (
    Resources,
    command,
    report_env,
    workload_container,
)
from ensemble_operator.settings import Settings
from ensemble_operator.status import conditions_of, fields_of
from ensemble_operator.storages import Resolved, named_searches, reference
from ensemble_operator.training import TRAIN
from ensemble_operator.verdicts import Verdicts
from ensemble_operator.workload import LOOK_AGAIN, Start, Wish
from ensemble_operator.world import NAMESPACE_GOES, Decision, Manifest, Others, Ref, World

DELETE: Component = "delete"
DELETE_VERB = "delete"
DELETE_SECONDS = 3600
DELETER = Resources(cpu=0.1, memory=256, memory_limit=1024)
STARTS_OR_IS_POD = ("Job", "RayJob", "Pod")
TOLD_WRITERS = 5

Place = tuple[str, ...]


@dataclass(frozen=True)
class Users:
    """Who may still need models of a library.

    Args:
        selections: Which read it, or keep their results in it; what cannot be read may, and what names a search of
            which nobody can tell where its library is.
        deployments: Which serve what one of these has found, or one that is not there any more.
    """

    selections: tuple[str, ...]
    deployments: tuple[str, ...]

    def __str__(self) -> str:
        selections = (f"EnsembleSelection {name}" for name in self.selections)
        return ", ".join((*selections, *(f"EnsembleDeployment {name}" for name in self.deployments)))


def end_search(world: World[HPOSearch]) -> Decision:
    """The end of a search: with `deletionPolicy: Delete` its library goes first, once nobody needs or writes it."""
    resource = world.resource
    if not deletes_library(resource) or LIBRARY_FINALIZER not in world.body["metadata"].get("finalizers", ()):
        return _let_go(world, "the library stays")
    if _namespace_goes(world.body):
        return _let_go(world, "the namespace is being deleted, in which no Job can delete the library any more")
    if users := str(users_of(world)):
        message = (
            f"the library is still used by {users}; delete these first,"
            " or set spec.library.deletionPolicy: Retain to keep the library"
        )
        return _held(world, verdicts.stopped(reasons.LIBRARY_IN_USE, message, degraded=True))
    owner, spec = owner_of(resource, world.body), resource.spec
    wanted = delete_wish(resource)
    known = workload.starts(world, DELETE, DELETE_VERB)
    if writers := () if known else _writers(world):
        told = ", ".join(f"{ref.kind} {ref.name}" for ref in writers[:TOLD_WRITERS])
        more = f" and {len(writers) - TOLD_WRITERS} more" if len(writers) > TOLD_WRITERS else ""
        message = f"waits until the pods that write the library have ended: {told}{more}"
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
        again_after=_again(world, start),
    )


def _conclude_deletion(world: World[HPOSearch], start: Start) -> Verdicts:
    outcome = start.outcome
    if outcome.state == "Failed":
        message = (
            f"{outcome.message}\n{workload.advice(start)},"
            " or set spec.library.deletionPolicy: Retain to leave what is left of the library"
        )
        return verdicts.stopped(reasons.LIBRARY_DELETION_FAILED, message, degraded=True)
    if outcome.state == "Lost" or (outcome.state == "Waiting" and outcome.blocked):
        return workload.waiting(world, start)
    return verdicts.progressing(reasons.DELETING_LIBRARY, "the library is being deleted")


def _again(world: World[HPOSearch], start: Start) -> float | None:
    lost = start.outcome.state == "Lost"
    return workload.look_again(world, max(workload.pause(world, start), 1.0) if lost else LOOK_AGAIN)


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


def users_of(world: World[HPOSearch]) -> Users:
    """Who in the namespace may need models of this search's library.

    Searches that share the library need none: of a shared library only this search's own models go.
    """
    place, selections = place_of(world.resource.spec.library.storage), _present(world.others, "EnsembleSelection")
    elsewhere = _elsewhere(world.others, place)
    using = tuple(name for name, manifest in selections.items() if _uses(manifest, place, elsewhere))
    harmless = selections.keys() - using
    deployments = _present(world.others, "EnsembleDeployment")
    serving = tuple(name for name, manifest in deployments.items() if _selection_of(manifest) not in harmless)
    return Users(using, serving)


def place_of(storage: Storage) -> Place:
    """Where files are, however a storage says it: credentials, region and the address of a store are only ways there.

    One store has many addresses: two of which nobody can tell whether they are one are taken for one.
    """
    if (claim := storage.persistent_volume_claim) is not None:
        return "claim", claim.claim_name, claim.sub_path
    if storage.s3 is not None:
        return "bucket", storage.s3.bucket, storage.s3.prefix
    return "path", storage.path or ""


def _present(others: Others, kind: str) -> Mapping[str, Manifest]:
    """Of a kind those that are not about to go, by name."""
    found = sorted(others.items())
    return {ref.name: manifest for ref, manifest in found if ref.kind == kind and not is_deleting(manifest)}


def _elsewhere(others: Others, place: Place) -> frozenset[str]:
    """The searches whose libraries are known to be in other places."""
    searches = {ref.name: workload.parsed(HPOSearch, one) for ref, one in others.items() if ref.kind == "HPOSearch"}
    known = {name: place_of(one.spec.library.storage) for name, one in searches.items() if one is not None}
    return frozenset(name for name, library in known.items() if library != place)


def _uses(manifest: Manifest, place: Place, elsewhere: frozenset[str]) -> bool:
    selection = workload.parsed(EnsembleSelection, manifest)
    if selection is None:
        return True
    given = [source.storage for source in selection.spec.sources] + [selection.spec.library]
    named = set(named_searches(selection.spec))
    return any(storage is not None and place_of(storage) == place for storage in given) or not named <= elsewhere


def _selection_of(manifest: Manifest) -> str | None:
    deployment = workload.parsed(EnsembleDeployment, manifest)
    return None if deployment is None else deployment.spec.selection_ref.name


def _writers(world: World[HPOSearch]) -> list[Ref]:
    """Whatever writes the library and is still there, and what is about to go."""
    running = [
        ref
        for ref, one in world.children.items()
        if ref.kind in STARTS_OR_IS_POD
        and one["metadata"]["labels"].get(COMPONENT) == TRAIN
        and not (ref.kind == "Pod" and has_ended(one))
    ]
    return sorted([*running, *(ref for ref in world.deleting if ref.kind in STARTS_OR_IS_POD)])


def delete_wish(search: HPOSearch) -> Wish:
    """The library's deletion; of a search nothing else counts, for it may be what was refused."""
    return workload.wish(DELETE, DELETE_VERB, [reference(search)], search.spec)


def delete_job(owner: Owner, start: Start, resolved: Resolved, spec: HPOSearchSpec, settings: Settings) -> Manifest:
    """The Job that deletes a library; it fails if that takes longer than its deadline."""
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
