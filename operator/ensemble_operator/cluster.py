"""The Kubernetes API as the operator uses it: a few verbs, typed errors, a timeout on every call."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import quote, urlencode

import aiohttp
import yaml
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config
from kubernetes.aio.config.config_exception import ConfigException

from ensemble_core.api.common import API_VERSION
from ensemble_core.errors import UserError
from ensemble_operator.names import FIELD_MANAGER
from ensemble_operator.world import NAMESPACE_GOES, Manifest

TIMEOUT = 30.0  # seconds for a request to be answered
SILENCE = 150.0  # seconds without a byte after which a watch is taken for dead; bookmarks come each minute or so
WATCH_SECONDS = 600  # after which the server ends a watch; it goes on from where it was
PAGE = 500
METADATA_ONLY = "application/json;as={};g=meta.k8s.io;v=v1"
NOT_IN_SCHEMA = "failed to create typed patch object"  # of a server-side apply; the server answers it with 500


class Api(NamedTuple):
    """Where objects of a kind are found."""

    version: str
    plural: str


CUSTOM: Mapping[str, Api] = {
    "HPOSearch": Api(API_VERSION, "hposearches"),
    "EnsembleSelection": Api(API_VERSION, "ensembleselections"),
    "EnsembleDeployment": Api(API_VERSION, "ensembledeployments"),
}
BUILT_IN: Mapping[str, Api] = {
    "Job": Api("batch/v1", "jobs"),
    "Deployment": Api("apps/v1", "deployments"),
    "Pod": Api("v1", "pods"),
    "Service": Api("v1", "services"),
    "PodDisruptionBudget": Api("policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": Api("networking.k8s.io/v1", "networkpolicies"),
    "HorizontalPodAutoscaler": Api("autoscaling/v2", "horizontalpodautoscalers"),
    "ConfigMap": Api("v1", "configmaps"),
    "ServiceAccount": Api("v1", "serviceaccounts"),
    "Role": Api("rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": Api("rbac.authorization.k8s.io/v1", "rolebindings"),
}
OPTIONAL: Mapping[str, Api] = {
    "RayJob": Api("ray.io/v1", "rayjobs"),
    "ServiceMonitor": Api("monitoring.coreos.com/v1", "servicemonitors"),
}
APIS: Mapping[str, Api] = {**CUSTOM, **BUILT_IN, **OPTIONAL}


class ApiError(Exception):
    """The API server did not do what was asked."""


class MissingError(ApiError):
    """There is no such object, or no such kind."""


@dataclass(eq=False)
class RefusedError(ApiError):
    """The request itself is not accepted, and would not be if it were sent again.

    Args:
        code: HTTP status code.
        reason: In one word: `Forbidden`, `Invalid`, `Conflict`, `AlreadyExists`.
        message: The server's, for people.
    """

    code: int
    reason: str
    message: str

    def __str__(self) -> str:
        return self.message

    def is_race(self) -> bool:
        """Whether somebody else was faster: read again, and decide again."""
        return self.reason in ("Conflict", "AlreadyExists")

    def namespace_goes(self) -> bool:
        """Whether nothing can be made in the namespace any more."""
        return NAMESPACE_GOES in self.message


@dataclass(eq=False)
class UnavailableError(ApiError):
    """The server cannot answer now.

    Args:
        message: For people.
        retry_after: Seconds that the server asks to wait.
        code: HTTP status code, 0 without an answer.
    """

    message: str
    retry_after: float | None = None
    code: int = 0

    def __str__(self) -> str:
        return self.message

    def is_failure(self) -> bool:
        """Whether this request failed, perhaps it alone: an admission webhook may be down. Others may go well."""
        return self.code >= 500


class ExpiredError(ApiError):
    """A watch cannot go on from where it was: list again."""


class Change(NamedTuple):
    """An event of a watch; the object has metadata alone."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: Manifest


class Cluster(Protocol):
    """What a reconcile needs. Every method raises MissingError, RefusedError or UnavailableError."""

    async def get(self, kind: str, namespace: str, name: str) -> Manifest:
        """One object."""

    async def select(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Objects that have these labels."""

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply with our field manager; makes the object if there is none."""

    async def create(self, manifest: Manifest) -> Manifest:
        """Make an object; RefusedError `AlreadyExists` if there is one."""

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Delete that very object, and in the background what it owns."""

    async def patch_status(self, body: Manifest, patch: Mapping[str, Any]) -> Manifest:
        """Merge into the status of a custom resource; RefusedError `Conflict` if it has changed since it was read."""

    async def patch_finalizers(self, body: Manifest, finalizers: list[str]) -> Manifest:
        """Set the finalizers of a custom resource; RefusedError `Conflict` if it has changed since it was read."""

    async def create_event(self, event: Manifest) -> None:
        """Make a Kubernetes event; nothing happens if there is one of that name."""


class Source(Protocol):
    """What watches need."""

    async def snapshot(self, kind: str, namespace: str | None, selector: str) -> tuple[list[Manifest], str]:
        """Metadata of all selected objects, and the resource version to watch from."""

    def changes(self, kind: str, namespace: str | None, selector: str, since: str) -> AsyncIterator[Change]:
        """What happens after that version, until the stream ends; ExpiredError if it is too old."""


class KubernetesCluster:
    """`Cluster` and `Source` over HTTPS.

    Args:
        configuration: Where the server is, and who we are.
        connections: Requests at a time; watches have connections of their own.
        observe: Called once for each request, with verb and status code of the answer; 0 if there was none.
    """

    def __init__(
        self, configuration: Configuration, connections: int = 16, observe: Callable[[str, int], None] | None = None
    ) -> None:
        self._configuration = configuration
        self._observe = observe or (lambda verb, code: None)
        self._requests = _client(configuration, connections)
        self._watches = _client(configuration, 0)

    async def close(self) -> None:
        await self._requests.close()  # type: ignore[no-untyped-call]
        await self._watches.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: str, namespace: str, name: str) -> Manifest:
        return await self._request("get", "GET", _path(kind, namespace, name))

    async def select(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        query = {"labelSelector": ",".join(f"{key}={value}" for key, value in labels.items())} if labels else {}
        answer = await self._request("list", "GET", _path(kind, namespace), query)
        api_version = APIS[kind].version
        return [{"apiVersion": api_version, "kind": kind} | item for item in answer.get("items") or ()]

    async def apply(self, manifest: Manifest) -> Manifest:
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._request(
            "apply", "PATCH", _path_of(manifest), query, manifest, "application/apply-patch+yaml"
        )

    async def create(self, manifest: Manifest) -> Manifest:
        path = _path(manifest["kind"], manifest["metadata"]["namespace"])
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}  # else it drops unknown fields silently
        return await self._request("create", "POST", path, query, manifest)

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        await self._request("delete", "DELETE", _path(kind, namespace, name), {}, options)

    async def patch_status(self, body: Manifest, patch: Mapping[str, Any]) -> Manifest:
        return await self._merge(f"{_path_of(body)}/status", body, {"status": patch})

    async def patch_finalizers(self, body: Manifest, finalizers: list[str]) -> Manifest:
        return await self._merge(_path_of(body), body, {"metadata": {"finalizers": finalizers}})

    async def create_event(self, event: Manifest) -> None:
        path = f"/apis/events.k8s.io/v1/namespaces/{event['metadata']['namespace']}/events"
        try:
            await self._request("create", "POST", path, {"fieldManager": FIELD_MANAGER}, event)
        except RefusedError as refused:
            if refused.reason != "AlreadyExists":
                raise

    async def capabilities(self) -> frozenset[str]:
        """Kinds that the server has, of ours and of the optional ones."""
        kinds = {**CUSTOM, **OPTIONAL}
        versions = sorted({api.version for api in kinds.values()})
        found = dict(zip(versions, await asyncio.gather(*map(self._plurals, versions)), strict=True))
        return frozenset(kind for kind, api in kinds.items() if api.plural in found[api.version])

    async def snapshot(self, kind: str, namespace: str | None, selector: str) -> tuple[list[Manifest], str]:
        items: list[Manifest] = []
        query = {"labelSelector": selector, "limit": str(PAGE)}
        accept = METADATA_ONLY.format("PartialObjectMetadataList")
        while True:
            answer = await self._request("list", "GET", _path(kind, namespace), query, accept=accept)
            items += answer.get("items") or ()  # absent or null where there are none
            metadata = answer["metadata"]
            if not metadata.get("continue"):
                return items, metadata["resourceVersion"]
            query["continue"] = metadata["continue"]

    async def changes(self, kind: str, namespace: str | None, selector: str, since: str) -> AsyncIterator[Change]:
        query = {
            "labelSelector": selector,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": since,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=SILENCE)
        accept = METADATA_ONLY.format("PartialObjectMetadata")
        async with self._answer(
            self._watches, "watch", "GET", _path(kind, namespace), query, accept=accept, timeout=timeout
        ) as answer:
            async for line in _lines(answer):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _error(event["object"].get("code", 500), event["object"], None)
                yield Change(event["type"], event["object"])

    async def _plurals(self, version: str) -> set[str]:
        try:
            answer = await self._request("get", "GET", f"/apis/{version}")
        except MissingError:
            return set()
        return {resource["name"] for resource in answer["resources"]}

    async def _merge(self, path: str, body: Manifest, patch: Manifest) -> Manifest:
        """Merge if the object is still the one that was read."""
        known = {"uid": body["metadata"]["uid"], "resourceVersion": body["metadata"]["resourceVersion"]}
        patch = patch | {"metadata": patch.get("metadata", {}) | known}
        return await self._request(
            "patch", "PATCH", path, {"fieldManager": FIELD_MANAGER}, patch, "application/merge-patch+json"
        )

    async def _request(
        self,
        verb: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Manifest:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        async with self._answer(
            self._requests, verb, method, path, query, body, content_type, accept, timeout
        ) as answer:
            parsed: Manifest = json.loads(await answer.read())
            return parsed

    @asynccontextmanager
    async def _answer(
        self,
        client: ApiClient,
        verb: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The server's answer if it is a good one; what fails while it is read counts as unavailable too."""
        url = f"{self._configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        answer: aiohttp.ClientResponse | None = None
        try:
            headers = {"Accept": accept, "Content-Type": content_type} | await self._authorization()
            answer = (await client.call_api(method, url, headers, body, _request_timeout=timeout)).response
            self._observe(verb, answer.status)
            async with answer:
                if answer.status >= 400:
                    raise _error(answer.status, _parsed(await answer.read()), answer.headers.get("Retry-After"))
                yield answer
        except (aiohttp.ClientError, TimeoutError, OSError, json.JSONDecodeError) as error:
            if answer is None:
                self._observe(verb, 0)
            raise UnavailableError(f"{method} {path}: {str(error) or type(error).__name__}") from error

    async def _authorization(self) -> dict[str, str]:
        token = await self._configuration.get_api_key_with_prefix("BearerToken")
        return {"Authorization": token} if token else {}


async def load_configuration() -> Configuration:
    """Of the pod's service account, or of $KUBECONFIG where this is no pod; UserError if there is neither."""
    configuration = Configuration()
    in_pod = bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
    files = [Path(file).expanduser() for file in os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)]
    found = os.pathsep.join(str(file) for file in files if file.is_file())
    if not in_pod and not found:
        shown = " or ".join(map(str, files))
        raise UserError("KUBECONFIG", f"there is no cluster to work in: this is no pod, and there is no file {shown}")
    try:
        if in_pod:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await load_kube_config(config_file=found, client_configuration=configuration)  # type: ignore[no-untyped-call]
    except (ConfigException, yaml.YAMLError, OSError) as error:
        raise UserError("KUBECONFIG", f"there is no cluster to work in: {' '.join(str(error).split())}") from error
    return configuration


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines until the stream ends, is cut, or is silent for long: it can be taken up again where it was."""
    try:
        async for line in answer.content:
            yield line
    except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, TimeoutError):
        return


def _client(configuration: Configuration, connections: int) -> ApiClient:
    own = Configuration.__new__(Configuration)
    own.__dict__.update(configuration.__dict__)
    own.connection_pool_maxsize = connections
    own.client_session_kwargs = {"trust_env": False}  # else ~/.netrc is read for each request
    return ApiClient(own)


def _path(kind: str, namespace: str | None, name: str | None = None) -> str:
    api = APIS[kind]
    prefix = "/apis" if "/" in api.version else "/api"
    inside = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{prefix}/{api.version}{inside}/{api.plural}" + (f"/{quote(name, safe='')}" if name else "")


def _path_of(manifest: Manifest) -> str:
    return _path(manifest["kind"], manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def _parsed(content: bytes) -> Manifest:
    """A `Status` of the API server, or what a proxy before it says."""
    try:
        status = json.loads(content)
    except ValueError:
        status = None
    return status if isinstance(status, dict) else {"message": content.decode(errors="replace")[:1000]}


def _error(code: int, status: Manifest, retry_after: str | None) -> ApiError:
    message = status.get("message") or f"the API server answers {code}"
    if code == 404:
        return MissingError(message)
    if code == 410:
        return ExpiredError(message)
    if code == 500 and NOT_IN_SCHEMA in message:
        return RefusedError(code, "Invalid", message)
    # 401: the token is being renewed.
    if code in (401, 408, 429) or code >= 500:
        return UnavailableError(message, float(retry_after) if retry_after and retry_after.isdigit() else None, code)
    return RefusedError(code, status.get("reason") or str(code), message)
