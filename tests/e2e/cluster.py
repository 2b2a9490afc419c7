"""A cluster by `kubectl`, with deadlines."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

Manifest = dict[str, Any]
Found = TypeVar("Found")

LOOK_SECONDS = 2.0
COMMAND_SECONDS = 120.0
HOPELESS_SECONDS = 120.0  # a resource that is Degraded for so long is given up
OURS = ("HPOSearch", "EnsembleSelection", "EnsembleDeployment")
# What Kubernetes itself puts into a namespace, at a time of its choice.
NOT_COUNTED = ("events", "events.events.k8s.io", "endpointslices.discovery.k8s.io", "endpoints")


class CommandError(Exception):
    """A command that failed, with all that it said."""


def run(*command: str | Path, text: str | None = None, seconds: float = COMMAND_SECONDS) -> str:
    """What a command prints."""
    words = [str(word) for word in command]
    done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise CommandError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def until(what: str, seconds: float, look: Callable[[], Found | None]) -> Found:
    """The first thing found; AssertionError if it takes longer."""
    end = time.monotonic() + seconds
    while (found := look()) is None:
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(LOOK_SECONDS)
    return found


@dataclass(frozen=True)
class Told:
    """What a condition must say.

    Args:
        type, status, reason: The condition's.
        words: That its message must have.
    """

    type: str
    status: str
    reason: str
    words: tuple[str, ...] = ()

    def holds(self, resource: Manifest) -> bool:
        """Whether the resource tells it of its present specification."""
        found = conditions(resource).get(self.type) if resource else None
        return (
            found is not None
            and (found["status"], found["reason"]) == (self.status, self.reason)
            and all(word in found["message"] for word in self.words)
        )


@dataclass
class Namespace:
    """A namespace of the cluster in $KUBECONFIG.

    Args:
        name: Its name.
        seen: The last table printed of each kind.
    """

    name: str
    seen: dict[str, str] = field(default_factory=dict)

    def kubectl(self, *arguments: str | Path, text: str | None = None, seconds: float = COMMAND_SECONDS) -> str:
        return run("kubectl", "--namespace", self.name, *arguments, text=text, seconds=seconds)

    def apply(self, *manifests: Path | Manifest) -> None:
        for manifest in manifests:
            if isinstance(manifest, Path):
                self.kubectl("apply", "--filename", manifest)
            else:
                self.kubectl("apply", "--filename", "-", text=yaml.safe_dump(manifest))

    def get(self, kind: str, name: str) -> Manifest | None:
        """An object, or none."""
        text = self.kubectl("get", kind, name, "--output=json", "--ignore-not-found")
        found: Manifest | None = json.loads(text) if text.strip() else None
        return found

    def list(self, kind: str, selector: str = "") -> Sequence[Manifest]:
        found: Sequence[Manifest] = json.loads(self.kubectl("get", kind, "--output=json", "--selector", selector))[
            "items"
        ]
        return found

    def objects(self) -> frozenset[str]:
        """Everything in the namespace, as KIND/NAME."""
        kinds = run("kubectl", "api-resources", "--namespaced", "--verbs=list", "--output=name").split()
        counted = ",".join(kind for kind in kinds if kind not in NOT_COUNTED)
        return frozenset(self.kubectl("get", counted, "--output=name", "--ignore-not-found").split())

    def show(self) -> None:
        """Print the table of each of our kinds if it has changed, but for the age."""
        for kind in OURS:
            table = self.kubectl("get", kind)
            rows = "\n".join(line.rsplit(maxsplit=1)[0] for line in table.splitlines())
            if table and self.seen.get(kind) != rows:
                self.seen[kind] = rows
                print(f"$ kubectl get {kind.lower()}\n{table}", flush=True)

    def wait_ready(self, kind: str, name: str, seconds: float) -> Manifest:
        """The resource once it is Ready for its present specification; prints what is going on."""
        hopeless_since: list[float] = []

        def look() -> Manifest | None:
            self.show()
            found = self.get(kind, name)
            assert found is not None, f"{kind} {name} is not there"
            current = conditions(found)
            if current.get("Degraded", {}).get("status") == "True":
                hopeless_since.append(time.monotonic())
                hopeless = time.monotonic() - hopeless_since[0] > HOPELESS_SECONDS
                assert not hopeless, f"{kind} {name} is degraded: {current['Degraded']}"
            else:
                hopeless_since.clear()
            return found if current.get("Ready", {}).get("status") == "True" else None

        return until(f"{kind} {name} is Ready", seconds, look)

    def wait_told(self, kind: str, name: str, told: Told, seconds: float) -> Manifest:
        """The resource once one of its conditions tells that; AssertionError with what they tell instead."""
        last: list[Manifest] = []

        def look() -> Manifest | None:
            self.show()
            last[:] = [self.get(kind, name) or {}]
            return last[0] if told.holds(last[0]) else None

        try:
            return until(f"{kind} {name} tells {told}", seconds, look)
        except AssertionError as late:
            instead = json.dumps(last[0].get("status", {}).get("conditions"), indent=1)
            raise AssertionError(f"{late}; it tells {instead}") from None

    def patch(self, kind: str, name: str, spec: Manifest) -> None:
        """Change the specification; a field that is None goes."""
        self.kubectl("patch", kind, name, "--type=merge", "--patch", json.dumps({"spec": spec}))

    def pods(self, selector: str) -> Sequence[Manifest]:
        """Pods that are not about to go."""
        return [pod for pod in self.list("pods", selector) if "deletionTimestamp" not in pod["metadata"]]

    def evict(self, pod: str) -> None:
        """Ask for a pod's eviction, as a drain does; CommandError if a disruption budget forbids it."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.name}}
        path = f"/api/v1/namespaces/{self.name}/pods/{pod}/eviction"
        run("kubectl", "create", "--raw", path, "--filename", "-", text=json.dumps(eviction))

    def wait_only(self, kept: frozenset[str], seconds: float) -> None:
        """Wait until nothing else is in the namespace."""
        left: list[frozenset[str]] = []

        def look() -> bool | None:
            left[:] = [self.objects() - kept]
            return not left[0] or None

        try:
            until("everything is deleted", seconds, look)
        except AssertionError as late:
            raise AssertionError(f"{late}; left are {sorted(left[0])}") from None

    def wait_pod(self, name: str, seconds: float) -> str:
        """What a pod has printed that runs to its end; AssertionError with its words if it failed."""

        def look() -> str | None:
            pod = self.get("pod", name) or {}
            phase = pod.get("status", {}).get("phase")
            if phase not in ("Succeeded", "Failed"):
                return None
            said = self.kubectl("logs", name, "--all-containers", "--prefix")
            assert phase == "Succeeded", f"pod {name} has failed:\n{said}"
            return said

        return until(f"pod {name} ends", seconds, look)

    def state(self) -> str:
        asked = [
            ["get", ",".join(OURS), "--output=yaml"],
            ["get", "all,configmaps,persistentvolumeclaims", "--show-labels"],
            ["get", "events", "--sort-by=.metadata.creationTimestamp"],
            ["describe", "pods"],
        ]
        pods = self.kubectl("get", "pods", "--output=name").split()
        asked += [["logs", pod, "--all-containers", "--prefix", "--tail=60", "--ignore-errors"] for pod in pods]
        return "\n".join(self.told(*arguments) for arguments in asked)

    def told(self, *arguments: str) -> str:
        """A command with what it prints, be it an error."""
        try:
            said = self.kubectl(*arguments)
        except (CommandError, subprocess.TimeoutExpired) as error:
            said = str(error)
        return f"$ kubectl {' '.join(arguments)}\n{said}"


def conditions(resource: Manifest) -> dict[str, Manifest]:
    """Conditions by type that speak of the present specification."""
    generation = resource["metadata"]["generation"]
    given = resource.get("status", {}).get("conditions", ())
    return {one["type"]: one for one in given if one.get("observedGeneration") == generation}
