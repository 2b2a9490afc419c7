"""From `kubectl apply` of three documents to answers of the ensemble, and back to nothing but the library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.client_pod import Client
from tests.e2e.cluster import CommandError, Manifest, Namespace, conditions, until
from tests.e2e.conftest import Images, Release
from tests.e2e.queues import has, queue_of, set_policy

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

HERE = Path(__file__).parent
READY_SECONDS = {"HPOSearch": 600.0, "EnsembleSelection": 300.0, "EnsembleDeployment": 420.0}
GONE_SECONDS = 180.0
MAKE_BUCKET = "import boto3; boto3.client('s3').create_bucket(Bucket='libraries')"


def test_digits_on_a_claim(namespace: Namespace, release: Release) -> None:
    """Installed for one namespace; a Job trains with a Ray of its own; the library is on a volume."""
    release.install(scope="namespaced", watchNamespaces=[namespace.name])
    volume = {"name": "library", "persistentVolumeClaim": {"claimName": "libraries"}}
    mount = {"name": "library", "mountPath": "/library"}
    client = Client(namespace, release.images, "/library/digits", volumes=[volume], mounts=[mount])
    with release.explained(namespace):
        namespace.apply(HERE / "claim.yaml")
        before = settled(namespace)
        namespace.apply(HERE / "digits-claim.yaml")
        resources = ready(namespace)
        assert children(namespace) == {"Job": 3, "Deployment": 1}
        use(namespace, client, resources)
        delete(namespace, client, "digits-claim.yaml", before)


def test_digits_on_s3_with_kuberay_and_kueue(namespace: Namespace, release: Release, queue: str) -> None:
    """Installed for the whole cluster; a Ray cluster trains when Kueue lets it; the library is on S3."""
    release.install(scope="cluster")
    with release.explained(namespace):
        environment = serve_s3(namespace, release.images)
        client = Client(namespace, release.images, "s3://libraries/teams/digits", env=environment)
        before = settled(namespace)
        namespace.apply(HERE / "digits-s3.yaml")
        until("the search waits in its queue", 60, lambda: queued(namespace))
        assert [job["spec"]["suspend"] for job in namespace.list("rayjobs")] == [True]
        set_policy(queue, "None")
        resources = ready(namespace)
        assert children(namespace) == {"RayJob": 1, "Job": 2, "Deployment": 1}
        assert admitted(namespace) == ["job", "job", "rayjob"]
        use(namespace, client, resources)
        delete(namespace, client, "digits-s3.yaml", before)


# --- steps ----------------------------------------------------------------------------------------------------------


def ready(namespace: Namespace) -> dict[str, Manifest]:
    """Our three resources, each Ready."""
    found = {kind: namespace.wait_ready(kind, "digits", seconds) for kind, seconds in READY_SECONDS.items()}
    namespace.show()
    return found


def use(namespace: Namespace, client: Client, resources: dict[str, Manifest]) -> None:
    """Answers are the ensemble's, nobody outside its pod controls the server, and workloads have no other rights."""
    [budget] = resources["EnsembleSelection"]["status"]["budgets"]
    assert len(budget["members"]) > 1, "an ensemble of one proves little"
    service = f"digits.{namespace.name}.svc"
    assert service in resources["EnsembleDeployment"]["status"]["endpoint"]
    print(client.ask(resources["HPOSearch"], service, budget["members"]))
    assert client.control(service) in ("400", "403", "404")
    for account in [binding["metadata"]["name"] for binding in namespace.list("rolebindings", OURS)]:
        try_rights(namespace, account)


OURS = "app.kubernetes.io/managed-by=ensemble-operator"


def try_rights(namespace: Namespace, account: str) -> None:
    """What a workload's service account can do is to write its report."""
    user = f"--as=system:serviceaccount:{namespace.name}:{account}"
    assert namespace.kubectl("auth", "can-i", "patch", f"configmaps/{account}-report", user).strip() == "yes"
    for verb in (
        ["get", "configmaps"],
        ["get", "secrets"],
        ["get", "pods"],
        ["delete", "configmap", f"{account}-report"],
    ):
        with pytest.raises(CommandError, match="Forbidden"):
            namespace.kubectl(*verb, user)


def delete(namespace: Namespace, client: Client, file: str, before: frozenset[str]) -> None:
    """Without our resources there is what was there before, and the library."""
    namespace.kubectl("delete", "--filename", HERE / file)
    namespace.wait_only(before, GONE_SECONDS)
    print(client.verify())


def settled(namespace: Namespace) -> frozenset[str]:
    """What is in a namespace once Kubernetes has put its own things there."""
    own = {"configmap/kube-root-ca.crt", "serviceaccount/default"}
    return until("the namespace is furnished", 30, lambda: objects if own <= (objects := namespace.objects()) else None)


def children(namespace: Namespace) -> dict[str, int]:
    """How many workloads there are of each kind."""
    kinds = ["Job", "Deployment", *(["RayJob"] if has("rayjobs.ray.io") else [])]
    counts = {kind: len(namespace.list(kind, OURS)) for kind in kinds}
    return {kind: count for kind, count in counts.items() if count}


# --- S3 and Kueue ---------------------------------------------------------------------------------------------------


def serve_s3(namespace: Namespace, images: Images) -> list[Manifest]:
    """Start an S3 server with an empty bucket; what a client needs in its environment."""
    namespace.kubectl("apply", "--filename", "-", text=(HERE / "s3.yaml").read_text().replace("$IMAGE", images.s3))
    namespace.kubectl("wait", "pod/s3", "--for=condition=Ready", "--timeout=60s")
    namespace.kubectl("exec", "s3", "--", "python", "-c", MAKE_BUCKET)
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    secret = [{"name": key, "valueFrom": {"secretKeyRef": {"name": "s3-credentials", "key": key}}} for key in keys]
    place = {"AWS_ENDPOINT_URL": "http://s3:9000", "AWS_DEFAULT_REGION": "us-east-1"}
    return [*secret, *({"name": name, "value": value} for name, value in place.items())]


@pytest.fixture
def queue(namespace: Namespace) -> Iterator[str]:
    """Name of a ClusterQueue that admits nothing yet; the namespace's LocalQueue `research` leads to it."""
    with queue_of(namespace) as name:
        yield name


def queued(namespace: Namespace) -> bool | None:
    namespace.show()
    progressing = conditions(namespace.get("HPOSearch", "digits") or {"metadata": {"generation": 1}}).get("Progressing")
    return True if progressing and progressing["reason"] == "Queued" else None


def admitted(namespace: Namespace) -> list[str]:
    """Kinds of what Kueue has admitted, by its events: a Workload may be gone once it is finished."""
    told = {event["involvedObject"]["name"] for event in namespace.list("events") if event["reason"] == "Admitted"}
    return sorted(name.split("-")[0] for name in told)
