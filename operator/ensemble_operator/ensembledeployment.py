"""EnsembleDeployment: a Job that spreads an ensemble over devices, and Deployments that serve it one after another.

What should serve is a revision, found in three steps: the ensemble that the selection has now, its allocation, and the
pods made of both. A revision's own ConfigMap remembers its allocation, so that a document that was there before finds
its revision again without a Job.
"""

from __future__ import annotations

from collections.abc import Iterator

from ensemble_core.api.ensembledeployment import EnsembleDeployment, EnsembleDeploymentSpec
from ensemble_core.api.ensembleselection import EnsembleSelection
from ensemble_core.errors import UserError
from ensemble_operator import workload
from ensemble_operator.deployment_aim import Aim, find_aim, wish_of
from ensemble_operator.deployment_status import conclude, fields, find_state
from ensemble_operator.names import CHILD
from ensemble_operator.revisions import Look, look_at, rebuilt
from ensemble_operator.rollout import Step, next_step
from ensemble_operator.serving import (
    Ports,
    build_autoscaler,
    build_deployment,
    build_disruption_budget,
    build_identity,
    build_network_policy,
    build_record,
    build_service,
    build_service_monitor,
    child_of,
    ports_of,
)
from ensemble_operator.storages import named_searches
from ensemble_operator.workload import LOOK_AGAIN
from ensemble_operator.world import Decision, Manifest, Others, Ref, World

REMEMBERED = 2  # revisions


class EnsembleDeploymentKind:
    """The kind, as the engine sees it."""

    model = EnsembleDeployment

    def references(self, resource: EnsembleDeployment, body: Manifest, read: Others) -> tuple[Ref, ...]:
        """The selection, and the searches that it names: of these only where their libraries are."""
        name = Ref("EnsembleSelection", resource.spec.selection_ref.name)
        selection = workload.parsed(EnsembleSelection, read[name]) if name in read else None
        return name, *(Ref("HPOSearch", one) for one in (named_searches(selection.spec) if selection else ()))

    def decide(self, world: World[EnsembleDeployment]) -> Decision:
        try:
            return _decide(world)
        except UserError as refused:
            return workload.refused(world, str(refused))


KIND = EnsembleDeploymentKind()


def _decide(world: World[EnsembleDeployment]) -> Decision:
    spec, look = world.resource.spec, look_at(world)
    aim = find_aim(world, look)
    if spec.suspend:
        step = Step(frozenset(), look.selected)
    else:
        step = next_step(spec.rollout.strategy, aim.target, look.there, look.selected, aim.devices_needed)
        if aim.as_before and not step.revisions and rebuilt(world, look, step.selected) is not None:
            step = Step(frozenset({step.selected or ""}), step.selected)
    state = find_state(world, look, aim)
    again_after = aim.again_after or (LOOK_AGAIN if state.goes_on and not spec.suspend else None)
    return Decision(
        objects=(*aim.objects, *desired(world, look, aim, step)),
        keep=aim.keep | _kept(world, look, step, aim.target),
        conditions=conclude(world, look, aim, state),
        status=fields(world, look, aim, step),
        again_after=workload.look_again(world, again_after),
    )


def desired(world: World[EnsembleDeployment], look: Look, aim: Aim, step: Step) -> Iterator[Manifest]:
    """The target's objects, and those that all revisions share; what something needs comes before it."""
    owner, serving, selected = look.owner, world.resource.spec.serving, step.selected
    target = aim.target
    runs = target is not None and target in step.revisions
    if aim.served is not None:
        yield build_record(aim.served, aim.basis, wish_of(world))
    if aim.served is not None and runs:
        yield from build_identity(aim.served)
    if selected is not None:
        yield build_network_policy(owner)
    if aim.served is not None and target is not None and runs:
        yield build_deployment(aim.served, replicas_of(world.resource.spec, look, target))
    for revision in sorted(step.revisions - {target}):
        if (served := rebuilt(world, look, revision)) is not None:
            yield from build_identity(served)
            yield build_deployment(served, replicas_of(world.resource.spec, look, revision))
    if selected is None:
        return
    yield build_service(owner, serving, selected, announced(world, look, target, selected))
    yield build_disruption_budget(owner, selected)
    if serving.autoscaling is not None and selected in step.revisions:
        yield build_autoscaler(owner, serving.autoscaling, selected)
    if serving.monitoring.service_monitor and "ServiceMonitor" in world.capabilities:
        yield build_service_monitor(owner, serving.monitoring.interval_seconds)


def announced(world: World[EnsembleDeployment], look: Look, target: str | None, selected: str) -> Ports:
    """The ports of the Service: those of the revision that it sends requests to, so that both change at once.

    A revision without pods, as while the deployment is suspended, keeps those that the Service has.
    """
    wanted = ports_of(world.resource.spec.serving)
    if selected == target:
        return wanted
    return look.ports.get(selected) or (look.service if selected == look.selected else None) or wanted


def replicas_of(spec: EnsembleDeploymentSpec, look: Look, revision: str) -> int:
    """Copies of a revision.

    Under an autoscaler the number is the one that is there, and a new revision begins with as many as the one that it
    replaces. It is repeated rather than left out, for the API server resets a field that its only owner leaves out.
    """
    scaling = spec.serving.autoscaling
    if scaling is None:
        return spec.serving.replicas
    there = [look.deployments[one] for one in {revision, look.selected or ""} & look.deployments.keys()]
    largest = max((one["spec"].get("replicas", 1) for one in there), default=scaling.min_replicas)
    return int(min(max(largest, scaling.min_replicas), scaling.max_replicas))


def _kept(world: World[EnsembleDeployment], look: Look, step: Step, target: str | None) -> frozenset[Ref]:
    """What stays of revisions other than the target: all that still run, and the memory of the last ones."""
    running = step.revisions - {target}
    needed = {one for one in (target, step.selected, *step.revisions) if one in look.records or one == target}
    others = [one for one in look.records if one not in needed]
    memory = needed.union(others[: max(0, REMEMBERED - len(needed))])
    children = {child_of(look.owner, one): one for one in memory | running if one is not None}
    return frozenset(
        ref
        for ref, manifest in world.children.items()
        if (revision := children.get(manifest["metadata"]["labels"].get(CHILD, ""))) is not None
        and (revision in running or ref.kind == "ConfigMap")
    )
