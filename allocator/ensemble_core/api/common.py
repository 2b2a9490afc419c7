"""What the three kinds share: metadata, storage, pod overrides and the conditions of their status."""

from __future__ import annotations

import math
import pathlib
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
)

from ensemble_core.api.rules import Rule, Ruled, exactly_one
from ensemble_core.frozen import Frozen

GROUP = "ensemble-operator.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

_SEGMENT = r"[A-Za-z0-9_][-A-Za-z0-9_.=+@]*"  # never starts with a dot: no way up

# A name of ours; KubeRay takes at most 47 characters for a RayJob, and the operator appends some.
NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
Name = Annotated[str, StringConstraints(pattern=NAME, min_length=1, max_length=40)]
Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=63)]
# A name of any Kubernetes object: a DNS subdomain.
ObjectName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", min_length=1, max_length=253)
]
ResourceName = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9][-.a-z0-9]*/)?[A-Za-z0-9][-A-Za-z0-9_.]*$", min_length=1, max_length=253)
]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Folder = Annotated[str, StringConstraints(pattern=rf"^({_SEGMENT}(/{_SEGMENT})*)?$", max_length=512)]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
Labels = Annotated[dict[str, LabelValue], Field(max_length=64)]
Annotations = Annotated[dict[str, Annotated[str, StringConstraints(max_length=8192)]], Field(max_length=64)]
ShortText = Annotated[str, StringConstraints(max_length=253)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", max_length=64)]
Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Port = Annotated[int, Field(ge=1024, le=65_535)]  # those below are for root, which no container is


def resolved(path: str, info: ValidationInfo) -> str:
    """The path, made absolute if the document comes from a file, whose folder is then the context's `folder`."""
    folder = (info.context or {}).get("folder")
    return path if folder is None else str(pathlib.Path(folder, path))


Path = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
LocalPath = Annotated[Path, AfterValidator(resolved)]


_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")


def _listed_value(value: object) -> int | float | str:
    """A number, or text that is none; a number in quotes is a number."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("must be a whole number or text; write a number with a fraction in quotes")
    if isinstance(value, str) and not 1 <= len(value) <= 40:
        raise ValueError("must have 1 to 40 characters")
    if isinstance(value, int) and abs(value) > 10**12:
        raise ValueError("must be between -1000000000000 and 1000000000000")
    if isinstance(value, int) or not _NUMBER.fullmatch(value):
        return value
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("must be a finite number")
    return int(number) if number.is_integer() and abs(number) <= 10**12 else number


def _written_value(value: int | float | str) -> int | str:
    return repr(value) if isinstance(value, float) else value


# Kubernetes' schemas give a value one type, or "integer or string"; they know no "number or string".
ListedValue = Annotated[
    int | float | str,
    PlainValidator(_listed_value),
    PlainSerializer(_written_value),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "minLength": 1,
            "maxLength": 40,
            "minimum": -(10**12),
            "maximum": 10**12,
        }
    ),
]


_QUANTITY = r"^[0-9]+([.][0-9]+)?(m|[kMGTPE]|[KMGTPE]i|[eE][0-9]+)?$"


def _quantity(value: object) -> int | str:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**63 - 1
    text = isinstance(value, str) and len(value) <= 40 and re.fullmatch(_QUANTITY, value) is not None
    if not (whole or text):
        raise ValueError("must be a quantity as Kubernetes writes it, for example 2, 500m or 4Gi")
    return value  # type: ignore[return-value]


Quantity = Annotated[
    int | str,
    PlainValidator(_quantity),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": _QUANTITY, "maxLength": 40, "minimum": 0}),
]
# Parts of Kubernetes' own API, which checks them when the pod is made.
KubernetesObject = Annotated[
    dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]


class Metadata(Frozen):
    """The part of Kubernetes' object metadata that the commands use; the rest is accepted and ignored."""

    model_config = ConfigDict(extra="ignore")

    name: Name = Field(description="Name of the resource, unique among its kind in the namespace.")
    namespace: Namespace | None = Field(None, description="Namespace of the resource.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations.")


class PersistentVolumeClaimStorage(Frozen):
    """A folder on a claim of the same namespace."""

    claim_name: ObjectName = Field(description="Name of the PersistentVolumeClaim.")
    sub_path: Folder = Field("", description="Folder on the volume.")


class S3Storage(Frozen):
    """A prefix of a bucket on S3 or a compatible store with conditional writes (`If-None-Match`)."""

    bucket: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][-.a-z0-9]*[a-z0-9]$", min_length=3, max_length=63)] = (
        Field(description="Name of the bucket.")
    )
    prefix: Folder = Field("", description="Prefix of every key, without slashes around it.")
    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^/?#@\s]+/?$", max_length=512)] | None = Field(
        None, description="URL of a store other than AWS; scheme, host and port."
    )
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)] | None = Field(
        None, description="Region of the bucket."
    )


class CredentialsSecretRef(Frozen):
    """A Secret of the same namespace: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, and maybe `AWS_SESSION_TOKEN`."""

    name: ObjectName = Field(description="Name of the Secret.")


class Storage(Ruled):
    """Where files are: exactly one of a claim, S3 or a local path."""

    rules = (
        exactly_one(("persistentVolumeClaim", "s3", "path")),
        Rule(
            "credentialsSecretRef",
            "is only for s3",
            "!has(self.credentialsSecretRef) || has(self.s3)",
            lambda storage: storage.credentials_secret_ref is None or storage.s3 is not None,
        ),
        Rule("path", "is only for one machine; in a cluster give persistentVolumeClaim or s3", "!has(self.path)"),
    )

    persistent_volume_claim: PersistentVolumeClaimStorage | None = Field(None, description="A folder on a claim.")
    s3: S3Storage | None = Field(None, description="A prefix of an S3 bucket.")
    path: LocalPath | None = Field(
        None,
        description="A local folder, relative to that of the document's file (what `ensemble run` fills: to its output "
        "folder); refused in clusters.",
    )
    credentials_secret_ref: CredentialsSecretRef | None = Field(
        None,
        description="Secret with the credentials for `s3`; without it the service account's or the environment's.",
    )


class Toleration(Frozen):
    """A Kubernetes toleration."""

    key: Annotated[str, StringConstraints(max_length=316)] | None = Field(
        None, description="Key of the taint; all if absent."
    )
    operator: Literal["Exists", "Equal"] = Field("Equal", description="How key and value relate.")
    value: Annotated[str, StringConstraints(max_length=63)] | None = Field(None, description="Value of the taint.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Effect of the taint; all if absent."
    )
    toleration_seconds: int | None = Field(
        None, ge=0, le=2**31 - 1, description="Seconds that a `NoExecute` taint is tolerated; forever if absent."
    )


class Resources(Frozen):
    """Requests and limits of a container."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(
        default_factory=dict, description="Least that the container gets, by resource name."
    )
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(
        default_factory=dict, description="Most that the container gets, by resource name."
    )


class PodOverrides(Frozen):
    """What may be changed of the pods that the operator makes; nothing else can be."""

    labels: Labels = Field(default_factory=dict, description="Further labels.")
    annotations: Annotations = Field(default_factory=dict, description="Further annotations.")
    node_selector: Labels = Field(default_factory=dict, description="Labels that the node must have.")
    tolerations: tuple[Toleration, ...] = Field((), max_length=32, description="Taints that do not matter.")
    affinity: KubernetesObject | None = Field(None, description="Kubernetes affinity.")
    topology_spread_constraints: tuple[KubernetesObject, ...] = Field(
        (), max_length=16, description="Kubernetes topology spread constraints."
    )
    priority_class_name: ObjectName | None = Field(None, description="Priority class.")
    image_pull_secrets: tuple[ObjectName, ...] = Field((), max_length=16, description="Names of image pull secrets.")
    resources: Resources | None = Field(None, description="Requests and limits of the main container.")
    runtime_class_name: ObjectName | None = Field(None, description="Runtime class.")


class Workload(Ruled):
    """Fields of every kind that starts pods."""

    suspend: bool = Field(False, description="Stop all pods and keep what is done; false continues.")
    service_account_name: ObjectName | None = Field(
        None, description="Service account of the pods that touch storage, for cloud identity."
    )
    pod_overrides: PodOverrides = Field(default_factory=PodOverrides, description="Allowed changes of the pods.")


class Condition(Frozen):
    """A condition as Kubernetes has it."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=316)] = Field(
        description="`Ready`, `Progressing` or `Degraded`."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9])?$", max_length=1024)] = (
        Field(description="Why, in one word for programs; the administrator guide lists them.")
    )
    message: Annotated[str, StringConstraints(max_length=32_768)] = Field(description="Why, for people.")
    last_transition_time: Time = Field(description="When `status` changed last.")
    observed_generation: int | None = Field(None, ge=0, description="Generation of the spec that this is about.")


class Status(Frozen):
    """What every kind reports."""

    observed_generation: int | None = Field(None, ge=0, description="Generation of the spec that the status is about.")
    conditions: tuple[Condition, ...] = Field(
        (),
        max_length=16,
        description="`Ready`, `Progressing` and `Degraded`.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class Quality(Frozen):
    """Metrics on one split."""

    cross_entropy: float | None = Field(None, ge=0, description="Mean cross-entropy in nats.")
    error: float | None = Field(None, ge=0, le=1, description="Share of wrong answers.")
    macro_f1: Annotated[float | None, Field(alias="macroF1")] = Field(
        None, ge=0, le=1, description="F1, averaged over classes."
    )
    top5_error: Annotated[float | None, Field(alias="top5Error")] = Field(
        None, ge=0, le=1, description="Share of samples whose class is not among the five most probable."
    )
