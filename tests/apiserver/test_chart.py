"""The Helm chart on a real API server: install, upgrade, uninstall, refused values, and just the rights it needs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.apiserver.chart import CHART, ROOT, go_tool
from tests.apiserver.server import free_ports

from ensemble_operator.cluster import APIS
from ensemble_operator.settings import Settings, settings_from

pytestmark = pytest.mark.apiserver

GITOPS = ROOT / "examples/gitops"
OURS = ("hposearches", "ensembleselections", "ensembledeployments")
CRDS = tuple(f"customresourcedefinition/{plural}.ensemble-operator.io" for plural in OURS)
OPERATOR = "system:serviceaccount:system:ensemble-operator"
MANAGED = "--selector=app.kubernetes.io/managed-by=ensemble-operator"
DEADLINE = 60.0

# Every value differs from its default; the ServiceMonitor is left out, since its CRD is not here.
EVERYTHING = {
    "images": {
        "registry": "registry.example.org:5000/ensembles/",
        "pullPolicy": "Always",
        "pullSecrets": ["registry", "mirror"],
        "operator": {"repository": "operator", "tag": "1.2.3", "digest": f"sha256:{'0' * 64}"},
        "trainer": {"repository": "trainer", "tag": "1.2.3"},
        "core": {"repository": "core", "digest": f"sha256:{'f' * 64}"},
    },
    "serviceAccount": {"name": "somebody", "annotations": {"example.org/role": "operator"}},
    "logLevel": "debug",
    "resyncSeconds": 60,
    "workers": 2,
    "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Ensembles"}},
    "networkPolicy": {
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "apiServerPorts": [443, 6443],
    },
    "resources": {"requests": {"cpu": 1}, "limits": {"memory": "1Gi"}},
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "control", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "Exists"}]}]
            }
        }
    },
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "podAnnotations": {"example.org/a": "b"},
    "podLabels": {"example.org/c": "d"},
    "commonLabels": {"app.kubernetes.io/part-of": "research"},
    "fullnameOverride": "ensembles",
}
NAMESPACED = {"scope": "namespaced", "watchNamespaces": ["team-a", "team-b"]}

CREATED = {"get", "list", "watch", "create", "patch", "delete"}
# What the operator may do in a namespace that it manages, and nothing else.
RIGHTS = {
    **{f"{plural}.ensemble-operator.io": {"get", "list", "watch"} for plural in OURS[1:]},
    "hposearches.ensemble-operator.io": {"get", "list", "watch", "patch"},
    **{f"{plural}/status.ensemble-operator.io": {"patch"} for plural in OURS},
    **dict.fromkeys(("configmaps", "serviceaccounts", "services"), CREATED),
    **{f"{plural}.rbac.authorization.k8s.io": CREATED for plural in ("roles", "rolebindings")},
    **dict.fromkeys(("jobs.batch", "rayjobs.ray.io"), CREATED - {"patch"}),
    "deployments.apps": CREATED,
    "poddisruptionbudgets.policy": CREATED,
    "networkpolicies.networking.k8s.io": CREATED,
    "horizontalpodautoscalers.autoscaling": CREATED,
    "servicemonitors.monitoring.coreos.com": CREATED,
    "pods": {"list", "watch"},
    "events.events.k8s.io": {"create"},
}


@dataclass(frozen=True)
class Cluster:
    """The API server for those who use it with `helm` and `kubectl`.

    Args:
        environment: Names the kubeconfig of an administrator, and folders of its own for Helm.
        kubectl_path: Of the API server's version.
        helm_path: Helm 3.
    """

    environment: dict[str, str]
    kubectl_path: str
    helm_path: str

    def helm(self, *arguments: str | Path, refused: bool = False) -> str:
        """What Helm prints; `refused`: it must fail, and what counts is what it complains of."""
        return self._run([self.helm_path, *arguments], None, refused)

    def kubectl(self, *arguments: str | Path, given: Any = None, refused: bool = False) -> str:
        """What kubectl prints; `given` goes to its standard input: text, or documents."""
        text = yaml.safe_dump_all(given) if isinstance(given, list) else given
        return self._run([self.kubectl_path, *arguments], text, refused)

    def json(self, *arguments: str | Path) -> Any:
        return json.loads(self.kubectl(*arguments, "--output=json"))

    def _run(self, command: Sequence[str | Path], given: str | None, refused: bool) -> str:
        ran = subprocess.run(
            list(map(str, command)), input=given, capture_output=True, text=True, timeout=120, env=self.environment
        )
        assert (ran.returncode != 0) == refused, f"{command}: {ran.stdout}{ran.stderr}"
        return ran.stderr if refused else ran.stdout


@pytest.fixture(scope="module")
def cluster(api_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The API server without our CRDs, before and after."""
    folder = tmp_path_factory.mktemp("helm")
    (folder / "kubeconfig").write_text(kubeconfig(api_server))
    homes = {f"HELM_{name}_HOME": str(folder / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
    environment = os.environ | homes | {"KUBECONFIG": str(folder / "kubeconfig"), "HOME": str(folder)}
    cluster = Cluster(environment, str(Path(os.environ["KUBEBUILDER_ASSETS"], "kubectl")), go_tool("helm"))
    remove_crds(cluster)
    for name in ("system", "team-a", "team-b", "team-c"):
        cluster.kubectl("create", "namespace", name)
    yield cluster
    remove_crds(cluster)


def kubeconfig(api_server: Any) -> str:
    name = {"cluster": "here", "user": "administrator"}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [
                {
                    "name": "here",
                    "cluster": {
                        "server": f"https://127.0.0.1:{api_server.port}",
                        "certificate-authority": str(api_server.certificate),
                    },
                }
            ],
            "users": [{"name": "administrator", "user": {"token": "administrator"}}],
            "contexts": [{"name": "here", "context": name}],
        }
    )


def remove_crds(cluster: Cluster) -> None:
    cluster.kubectl("delete", *CRDS, "--ignore-not-found", "--wait", "--timeout=60s")


@pytest.fixture
def install(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Installs the chart, as release `ensemble-operator` in namespace `system`; uninstalled at the end."""
    installed = []

    def installer(values: dict[str, Any] | None = None, *options: str, **more: Any) -> str:
        path = tmp_path / "values.yaml"
        path.write_text(yaml.safe_dump(values or {}))
        chart, release = more.pop("chart", CHART), more.pop("release", "ensemble-operator")
        if not more.get("refused"):
            installed.append(release)
        where = ["--namespace", "system", "--values", path]
        return cluster.helm("upgrade", "--install", release, chart, *where, *options, **more)

    yield installer
    for release in dict.fromkeys(installed):
        cluster.helm("uninstall", release, "--namespace", "system", "--ignore-not-found")


def rendered(cluster: Cluster, values: dict[str, Any], folder: Path) -> str:
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    where = ["--namespace", "system", "--values", folder / "values.yaml", "--validate"]
    return cluster.helm("template", "ensemble-operator", CHART, *where)


def of_kind(text: str, kind: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document and document["kind"] == kind]


# --- What it renders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{}, NAMESPACED, EVERYTHING], ids=["default", "namespaced", "everything"])
def test_the_server_takes_what_is_rendered(cluster: Cluster, tmp_path: Path, values: dict[str, Any]) -> None:
    text = rendered(cluster, values, tmp_path)
    printed = cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename=-", given=text)
    assert len(printed.splitlines()) == len([d for d in yaml.safe_load_all(text) if d])
    assert all(line.endswith("(server dry run)") for line in printed.splitlines())


def test_helm_finds_nothing_to_complain_of(cluster: Cluster) -> None:
    assert "0 chart(s) failed" in cluster.helm("lint", "--strict", CHART, "--kube-version=1.34")


def test_crds_are_rendered_as_they_are(cluster: Cluster, tmp_path: Path) -> None:
    found = {
        crd["metadata"]["name"]: crd for crd in of_kind(rendered(cluster, {}, tmp_path), "CustomResourceDefinition")
    }
    assert {name: crd["spec"] for name, crd in found.items()} == {
        path.stem: yaml.safe_load(path.read_text())["spec"] for path in (ROOT / "crds").glob("*.yaml")
    }
    assert {crd["metadata"]["annotations"]["helm.sh/resource-policy"] for crd in found.values()} == {"keep"}
    assert not of_kind(rendered(cluster, {"crds": {"install": False}}, tmp_path), "CustomResourceDefinition")


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["default", "everything"])
def test_the_pod_is_taken_where_pods_must_be_restricted(
    cluster: Cluster, tmp_path: Path, values: dict[str, Any]
) -> None:
    (deployment,) = of_kind(rendered(cluster, values, tmp_path), "Deployment")
    cluster.kubectl("label", "namespace", "team-c", "pod-security.kubernetes.io/enforce=restricted", "--overwrite")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator"}} | deployment["spec"]["template"]
    pod["metadata"] = pod["metadata"] | {"name": "operator", "namespace": "team-c"}
    assert "created" in cluster.kubectl("create", "--dry-run=server", "--filename=-", given=[pod])


def test_every_value_arrives(cluster: Cluster, tmp_path: Path) -> None:
    text = rendered(cluster, EVERYTHING, tmp_path)
    (deployment,) = of_kind(text, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    registry, zeros, ones = "registry.example.org:5000/ensembles", "0" * 64, "f" * 64
    assert container["image"] == f"{registry}/operator@sha256:{zeros}"
    assert {variable["name"]: variable["value"] for variable in container["env"]} == {
        "TRAINER_IMAGE": f"{registry}/trainer:1.2.3",
        "CORE_IMAGE": f"{registry}/core@sha256:{ones}",
        "WATCH_NAMESPACES": "",
        "IMAGE_PULL_POLICY": "Always",
        "IMAGE_PULL_SECRETS": "registry,mirror",
        "LOG_LEVEL": "debug",
        "RESYNC_SECONDS": "60",
        "WORKERS": "2",
    }
    assert pod["imagePullSecrets"] == [{"name": "registry"}, {"name": "mirror"}]
    assert pod["serviceAccountName"] == "somebody"
    names = ("priorityClassName", "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints")
    assert {name: pod[name] for name in names} == {name: EVERYTHING[name] for name in names}
    assert container["resources"]["limits"] == {"memory": "1Gi"}
    metadata = deployment["spec"]["template"]["metadata"]
    assert metadata["annotations"] == {"example.org/a": "b"}
    assert {"example.org/c", "app.kubernetes.io/part-of"} <= metadata["labels"].keys()
    for document in filter(None, yaml.safe_load_all(text)):
        assert document["metadata"]["labels"]["app.kubernetes.io/part-of"] == "research"


def test_the_operator_reads_its_settings_from_what_is_rendered(cluster: Cluster, tmp_path: Path) -> None:
    (deployment,) = of_kind(rendered(cluster, NAMESPACED, tmp_path), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    settings = settings_from({variable["name"]: variable["value"] for variable in container["env"]})
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert settings == Settings(f"ensemble-trainer:{version}", f"ensemble-core:{version}", ("team-a", "team-b"))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": settings.metrics_port, "health": settings.health_port}


def test_prometheus_and_grafana_find_what_is_made_for_them(cluster: Cluster, tmp_path: Path) -> None:
    values = {
        "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "intervalSeconds": 15}},
        "dashboards": {"enabled": True, "namespace": "grafana"},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    text = cluster.helm("template", "x", CHART, "--values", tmp_path / "values.yaml", "--kube-version=1.34")
    (monitor,), (service,) = of_kind(text, "ServiceMonitor"), of_kind(text, "Service")
    (deployment,), (dashboard,) = of_kind(text, "Deployment"), of_kind(text, "ConfigMap")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,), (port,) = monitor["spec"]["endpoints"], service["spec"]["ports"]
    assert (endpoint["port"], endpoint["interval"]) == (port["name"], "15s")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    template = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert port["targetPort"] in {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    assert dashboard["metadata"]["namespace"] == "grafana"
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["ensembles.json"]) == json.loads(
        (CHART / "dashboards/ensembles.json").read_text()
    )


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"scope": "galaxy"}, "'/scope'"),
        ({"watchNamespaces": ["team-a"]}, "'/watchNamespaces'"),
        ({"scope": "namespaced", "watchNamespaces": ["Team A"]}, "'/watchNamespaces/0'"),
        ({"replicas": 2}, "'replicas' not allowed"),
        ({"images": {"core": {"digest": "latest"}}}, "'/images/core/digest'"),
        ({"images": {"trainer": {"tag": "a b"}}}, "'/images/trainer/tag'"),
        ({"images": {"operator": {"name": "x"}}}, "'name' not allowed"),
        ({"crds": {"install": "yes"}}, "'/crds/install'"),
        ({"workers": 0}, "'/workers'"),
        ({"resyncSeconds": 1}, "'/resyncSeconds'"),
        ({"networkPolicy": {"apiServerPorts": ["https"]}}, "'/networkPolicy/apiServerPorts/0'"),
        ({"podLabels": {"app.kubernetes.io/name": "x"}}, "app.kubernetes.io/name"),
        ({"fullnameOverride": "a" * 51}, "'/fullnameOverride'"),
    ],
    ids=str,
)
def test_values_are_refused_by_name(
    install: Callable[..., str], cluster: Cluster, values: dict[str, Any], complaint: str
) -> None:
    assert complaint in install(values, refused=True)
    assert "ensemble-operator" not in cluster.helm("list", "--all", "--namespace", "system")


# --- Install, upgrade, uninstall -------------------------------------------------------------------------------------


def test_install_upgrade_and_uninstall(install: Callable[..., str], cluster: Cluster, tmp_path: Path) -> None:
    install()
    established(cluster)
    apply_digits(cluster)
    before = cluster.json("get", "ensembles", "--namespace", "team-a")["items"]
    assert len(before) == 3

    # A newer chart: another image, and CRDs with one more field.
    newer = tmp_path / "newer"
    shutil.copytree(CHART, newer)
    crd = newer / "templates/crds/hposearches.ensemble-operator.io.yaml"
    head, mark, tail = crd.read_text().partition("\n              suspend:\n")
    assert mark
    crd.write_text(f"{head}\n              added: {{type: string, description: New., maxLength: 9}}{mark}{tail}")
    install({"images": {"operator": {"tag": "9.9.9"}}}, chart=newer)
    deployment = cluster.json("get", "deployment/ensemble-operator", "--namespace=system")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "ensemble-operator:9.9.9"
    field = "jsonpath={.spec.versions[0].schema.openAPIV3Schema.properties.spec.properties.added.type}"
    assert cluster.kubectl("get", CRDS[0], "--output", field) == "string"
    wait_until(lambda: "added" in cluster.kubectl("explain", "hposearch.spec"), "the new field to be served")
    cluster.kubectl("patch", "hposearch/digits", "--namespace=team-a", "--type=merge", '--patch={"spec":{"added":"x"}}')

    # A release that gives up the CRDs leaves them.
    install({"crds": {"install": False}}, chart=newer)
    cluster.kubectl("get", *CRDS)

    cluster.helm("uninstall", "ensemble-operator", "--namespace", "system")
    after = cluster.json("get", "ensembles", "--namespace", "team-a")["items"]
    assert [item["metadata"]["uid"] for item in after] == [item["metadata"]["uid"] for item in before]
    kinds = "deployments,services,serviceaccounts,roles,rolebindings,networkpolicies,configmaps,secrets"
    left = cluster.json("get", kinds, "--all-namespaces", "--selector=app.kubernetes.io/name=ensemble-operator")
    assert left["items"] == []
    cluster_wide = cluster.kubectl("get", "clusterroles,clusterrolebindings", "--output=name")
    assert "ensemble-operator" not in cluster_wide
    delete_digits(cluster)


def test_an_upgrade_without_changes_writes_nothing(install: Callable[..., str], cluster: Cluster) -> None:
    def versions() -> dict[str, str]:
        kinds = "customresourcedefinitions,deployments,services,serviceaccounts,clusterroles,clusterrolebindings"
        selector = "--selector=app.kubernetes.io/name=ensemble-operator"
        items = cluster.json("get", kinds, "--all-namespaces", selector)["items"]
        return {f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"] for item in items}

    install()
    established(cluster)
    before = versions()
    assert len(before) == 10
    install()
    assert versions() == before


def test_installed_again_under_the_same_name_it_takes_its_crds_back(
    install: Callable[..., str], cluster: Cluster
) -> None:
    install()
    cluster.helm("uninstall", "ensemble-operator", "--namespace", "system")
    install()
    cluster.kubectl("get", *CRDS)


def test_another_release_needs_to_be_told_that_the_crds_are_its_own(
    install: Callable[..., str], cluster: Cluster
) -> None:
    install()
    once = {"crds": {"install": False}, "userRoles": {"create": False}}
    complaint = install({}, release="second", refused=True)
    assert "invalid ownership metadata" in complaint
    install(once | NAMESPACED, release="second")
    cluster.helm("uninstall", "second", "--namespace", "system")
    cluster.helm("uninstall", "ensemble-operator", "--namespace", "system")
    install({}, "--take-ownership", release="third")
    owner = "jsonpath={.metadata.annotations.meta\\.helm\\.sh/release-name}"
    assert cluster.kubectl("get", CRDS[0], "--output", owner) == "third"
    cluster.helm("uninstall", "third", "--namespace", "system")
    install({}, "--take-ownership")


def test_notes_tell_what_to_do_next(install: Callable[..., str], cluster: Cluster) -> None:
    notes = install(NAMESPACED).partition("NOTES:")[2]
    assert "in team-a, team-b." in notes
    assert "KubeRay is not installed" in notes
    established(cluster)
    manifest = notes.partition("<<EOF\n")[2].partition("  EOF")[0]
    document = yaml.safe_load(manifest)
    assert "created" in cluster.kubectl(
        "create", "--namespace=team-a", "--dry-run=server", "--filename=-", given=[document]
    )


# --- Rights ----------------------------------------------------------------------------------------------------------


def granted(cluster: Cluster, user: str, namespace: str) -> dict[str, set[str]]:
    """What a service account may do in a namespace by `resource.group/name`, beyond what every one may."""

    def rules(user: str) -> dict[str, set[str]]:
        review = json.dumps({"spec": {"namespace": namespace}})
        path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
        answer = json.loads(cluster.kubectl("create", f"--raw={path}", "--filename=-", f"--as={user}", given=review))
        assert not answer["status"]["incomplete"]
        found: dict[str, set[str]] = {}
        for rule in answer["status"]["resourceRules"]:
            for group, resource in itertools.product(rule["apiGroups"], rule["resources"]):
                for name in rule.get("resourceNames", [""]):
                    place = f"{resource}.{group}".rstrip(".") + (f"/{name}" if name else "")
                    found.setdefault(place, set()).update(rule["verbs"])
        return found

    everybody = rules("system:serviceaccount:system:nobody")
    return {name: verbs for name, verbs in rules(user).items() if verbs != everybody.get(name)}


def test_rights_are_about_the_kinds_that_the_operator_knows() -> None:
    kinds = {f"{api.plural}.{api.version.rpartition('/')[0]}".rstrip(".") for api in APIS.values()}
    assert {name for name in RIGHTS if "/" not in name} == kinds | {"events.events.k8s.io"}


def test_in_a_cluster_it_has_just_the_rights_it_needs(install: Callable[..., str], cluster: Cluster) -> None:
    install()
    assert granted(cluster, OPERATOR, "team-c") == RIGHTS


def test_in_namespaces_it_has_the_same_rights_there_and_none_elsewhere(
    install: Callable[..., str], cluster: Cluster
) -> None:
    install(NAMESPACED)
    assert granted(cluster, OPERATOR, "team-a") == RIGHTS
    assert granted(cluster, OPERATOR, "team-b") == RIGHTS
    assert granted(cluster, OPERATOR, "team-c") == {}
    assert granted(cluster, OPERATOR, "system") == {}


def test_by_default_a_namespaced_release_manages_its_own_namespace(
    install: Callable[..., str], cluster: Cluster
) -> None:
    install({"scope": "namespaced"})
    assert granted(cluster, OPERATOR, "system") == RIGHTS
    assert granted(cluster, OPERATOR, "team-a") == {}
    wanted = "jsonpath={.spec.template.spec.containers[0].env[?(@.name=='WATCH_NAMESPACES')].value}"
    assert cluster.kubectl("get", "deployment/ensemble-operator", "--namespace=system", "--output", wanted) == "system"


def namespaced(kind: str, api: str, name: str, **content: Any) -> dict[str, Any]:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": "team-a"}} | content


RBAC = "rbac.authorization.k8s.io"


def report_role(*names: str, resource: str = "configmaps", verb: str = "patch") -> dict[str, Any]:
    rule = {"apiGroups": [""], "resources": [resource], "resourceNames": list(names), "verbs": [verb]}
    return namespaced("Role", f"{RBAC}/v1", "digits-train", rules=[rule if names else rule | {"resourceNames": []}])


def binding(kind: str, name: str) -> dict[str, Any]:
    return namespaced(
        "RoleBinding",
        f"{RBAC}/v1",
        "digits-train",
        roleRef={"apiGroup": RBAC, "kind": kind, "name": name},
        subjects=[{"kind": "ServiceAccount", "name": "digits-train", "namespace": "team-a"}],
    )


def as_operator(cluster: Cluster, *documents: dict[str, Any], refused: bool = False) -> str:
    options = ("--server-side", "--field-manager=ensemble-operator", "--force-conflicts", f"--as={OPERATOR}")
    return cluster.kubectl("apply", *options, "--filename=-", given=list(documents), refused=refused)


@pytest.mark.parametrize("values", [{}, NAMESPACED], ids=["cluster", "namespaced"])
def test_it_can_give_a_workload_its_report_and_nothing_more(
    install: Callable[..., str], cluster: Cluster, values: dict[str, Any]
) -> None:
    install(values)
    config_maps = [
        namespaced("ConfigMap", "v1", f"digits-train-{name}", data={"a": "b"}) for name in ("spec", "report")
    ]
    account = namespaced("ServiceAccount", "v1", "digits-train")
    try:
        as_operator(cluster, *config_maps, account, report_role("digits-train-report"), binding("Role", "digits-train"))
        for wider in (report_role("x", verb="update"), report_role("x", resource="secrets"), report_role(verb="*")):
            assert "attempting to grant RBAC permissions not currently held" in as_operator(
                cluster, wider, refused=True
            )
        cluster.kubectl("delete", "rolebinding/digits-train", "--namespace=team-a", f"--as={OPERATOR}")
        # Not `admin`, `edit` and `view`: nobody is here to fill them.
        for role in ("cluster-admin", "system:aggregate-to-admin", "system:aggregate-to-view"):
            complaint = as_operator(cluster, binding("ClusterRole", role), refused=True)
            assert "attempting to grant RBAC permissions not currently held" in complaint
        as_operator(cluster, binding("Role", "digits-train"))

        user, report = "team-a/digits-train", "/api/v1/namespaces/team-a/configmaps/digits-train"
        assert patched_as(cluster, user, f"{report}-report", {"data": {"report.json": "{}"}}) == 200
        assert patched_as(cluster, user, f"{report}-spec", {"data": {"spec.yaml": "{}"}}) == 403
        assert granted(cluster, f"system:serviceaccount:{user.replace('/', ':')}", "team-a") == {
            "configmaps/digits-train-report": {"patch"}
        }
    finally:
        names = ("configmap/digits-train-spec", "configmap/digits-train-report", "serviceaccount/digits-train")
        roles = ("role/digits-train", "rolebinding/digits-train")
        cluster.kubectl("delete", *names, *roles, "--namespace=team-a", "--ignore-not-found")


def test_what_it_does_to_our_resources_it_may_do(install: Callable[..., str], cluster: Cluster) -> None:
    install(NAMESPACED)
    established(cluster)
    apply_digits(cluster)
    user, finalizer = f"--as={OPERATOR}", '--patch={"metadata":{"finalizers":["ensemble-operator.io/library"]}}'
    merge = ("--namespace=team-a", "--type=merge", user)
    cluster.kubectl("patch", "hposearch/digits", *merge, finalizer)
    cluster.kubectl("patch", "hposearch/digits", *merge, '--patch={"metadata":{"finalizers":[]}}')
    for plural in OURS:
        path = f"/apis/ensemble-operator.io/v1alpha1/namespaces/team-a/{plural}/digits/status"
        assert patched_as(cluster, "system/ensemble-operator", path, {"status": {"observedGeneration": 1}}) == 200
        assert "Forbidden" in cluster.kubectl(
            "delete", f"{plural}/digits", "--namespace=team-a", user, "--dry-run=server", refused=True
        )
    for kind in ("ensembleselection", "ensembledeployment"):
        assert "Forbidden" in cluster.kubectl("patch", f"{kind}/digits", *merge, finalizer, refused=True)
    delete_digits(cluster)


@pytest.mark.parametrize("values", [{}, NAMESPACED], ids=["cluster", "namespaced"])
def test_with_these_rights_the_operator_works(
    install: Callable[..., str], cluster: Cluster, tmp_path: Path, values: dict[str, Any]
) -> None:
    install(values)
    established(cluster)
    apply_digits(cluster)
    deployment = cluster.json("get", "deployment/ensemble-operator", "--namespace=system")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    told = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    metrics, health = (str(port) for port in free_ports(2))
    environment = os.environ | told | {"METRICS_PORT": metrics, "HEALTH_PORT": health, "LOG_LEVEL": "info"}
    environment["KUBECONFIG"] = kubeconfig_of(cluster, "system/ensemble-operator", tmp_path)
    command = [sys.executable, "-m", "ensemble_operator.main"]
    with (tmp_path / "log").open("w+") as log:
        running = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            wait_until(lambda: is_told_of(cluster), "the search's status, its Job and an event")
            assert page(f"http://127.0.0.1:{health}/healthz").startswith("{")
            requests = [line for line in page(f"http://127.0.0.1:{metrics}/metrics").splitlines() if 'code="' in line]
            assert [line for line in requests if 'code="2' in line]
            assert not [line for line in requests if 'code="403"' in line], requests
        finally:
            running.terminate()
            running.wait(60)
            log.seek(0)
            print(log.read())
    assert running.returncode == 0
    delete_digits(cluster)
    cluster.kubectl("delete", "jobs,configmaps,serviceaccounts,roles,rolebindings", "--namespace=team-a", MANAGED)


def is_told_of(cluster: Cluster) -> bool:
    search = cluster.json("get", "hposearch/digits", "--namespace=team-a")
    jobs = cluster.json("get", "jobs", "--namespace=team-a", MANAGED)["items"]
    events = cluster.json("get", "events.events.k8s.io", "--namespace=team-a")["items"]
    return bool(search.get("status", {}).get("conditions") and jobs and events)


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def kubeconfig_of(cluster: Cluster, account: str, folder: Path) -> str:
    """A kubeconfig with a service account's token in place of the administrator's."""
    namespace, name = account.split("/")
    config = yaml.safe_load(Path(cluster.environment["KUBECONFIG"]).read_text())
    token = cluster.kubectl("create", "token", name, f"--namespace={namespace}").strip()
    config["users"] = [{"name": "administrator", "user": {"token": token}}]
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    return str(folder / "kubeconfig")


def patched_as(cluster: Cluster, account: str, path: str, patch: Any) -> int:
    """Merges into an object with a service account's own token; the status code. kubectl would look at it first."""
    namespace, name = account.split("/")
    token = cluster.kubectl("create", "token", name, f"--namespace={namespace}").strip()
    view = cluster.json("config", "view", "--minify")["clusters"][0]["cluster"]
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"}
    request = urllib.request.Request(view["server"] + path, json.dumps(patch).encode(), headers, method="PATCH")
    context = ssl.create_default_context(cafile=view["certificate-authority"])
    try:
        with urllib.request.urlopen(request, context=context, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


# --- GitOps ----------------------------------------------------------------------------------------------------------


def test_the_same_documents_again_write_nothing(install: Callable[..., str], cluster: Cluster) -> None:
    install()
    established(cluster)
    apply_digits(cluster)
    before = digits_versions(cluster)
    apply_digits(cluster)
    assert digits_versions(cluster) == before
    cluster.kubectl("diff", "--kustomize", GITOPS / "digits", "--namespace=team-a")
    options = ("--server-side", "--field-manager=gitops", "--force-conflicts", "--namespace=team-a")
    cluster.kubectl("apply", "--kustomize", GITOPS / "digits", *options)
    once = digits_versions(cluster)
    cluster.kubectl("apply", "--kustomize", GITOPS / "digits", *options)
    assert digits_versions(cluster) == once
    delete_digits(cluster)


def test_kubectl_waits_for_conditions_of_the_newest_generation(install: Callable[..., str], cluster: Cluster) -> None:
    install()
    established(cluster)
    apply_digits(cluster)
    search = ("hposearch/digits", "--namespace=team-a")
    ready = ("wait", *search, "--for=condition=Ready", "--timeout=1s")

    def tell(generation: int) -> None:
        common = {"lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": generation}
        status = {"observedGeneration": generation, "conditions": [one | common for one in DONE]}
        patch = json.dumps({"status": status})
        cluster.kubectl("patch", *search, "--subresource=status", "--type=merge", "--patch", patch)

    tell(1)
    cluster.kubectl(*ready)
    cluster.kubectl("patch", *search, "--type=merge", '--patch={"spec":{"maxTrialCount":60}}')
    assert "timed out" in cluster.kubectl(*ready, refused=True)
    tell(2)
    cluster.kubectl(*ready)
    delete_digits(cluster)


def condition(kind: str, status: str, message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": "Some", "message": message}


BUSY = [condition("Ready", "False"), condition("Progressing", "True", "trains"), condition("Degraded", "False")]
DONE = [condition("Ready", "True", "is there"), condition("Progressing", "False"), condition("Degraded", "False")]
WORN = [condition("Ready", "True"), condition("Progressing", "False"), condition("Degraded", "True", "too few GPUs")]


@pytest.mark.parametrize(
    ("spec", "status", "health"),
    [
        ({}, None, ("Progressing", "waits for the operator")),
        ({}, {"observedGeneration": 1, "conditions": DONE}, ("Progressing", "waits for the operator")),
        ({}, {"observedGeneration": 2}, ("Progressing", "waits for the operator")),
        ({}, {"observedGeneration": 2, "conditions": BUSY}, ("Progressing", "trains")),
        ({}, {"observedGeneration": 2, "conditions": DONE}, ("Healthy", "is there")),
        ({}, {"observedGeneration": 2, "conditions": WORN}, ("Degraded", "too few GPUs")),
        ({"suspend": True}, {"observedGeneration": 2, "conditions": BUSY}, ("Suspended", "trains")),
        ({"suspend": True}, {"observedGeneration": 2, "conditions": WORN}, ("Degraded", "too few GPUs")),
    ],
    ids=["new", "changed", "no conditions", "busy", "done", "degraded", "suspended", "suspended and degraded"],
)
def test_argo_cd_tells_the_health(
    tmp_path: Path, spec: dict[str, Any], status: dict[str, Any] | None, health: tuple[str, str]
) -> None:
    """In the interpreter that Argo CD has."""
    resource = {"metadata": {"generation": 2}, "spec": spec} | ({"status": status} if status else {})
    check = (GITOPS / "argocd/health.lua").read_text()
    script = tmp_path / "script.lua"
    script.write_text(
        f"obj = {lua(resource)}\nlocal function check()\n{check}\nend\n"
        "local told = check()\nprint(told.status)\nprint(told.message)\n"
    )
    ran = subprocess.run([go_tool("glua"), script], capture_output=True, text=True, timeout=60, check=True)
    assert tuple(ran.stdout.splitlines()) == health


def lua(value: Any) -> str:
    """A value as an expression of Lua."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{json.dumps(key)}] = {lua(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(map(lua, value)) + "}"
    return json.dumps(value)


def test_manifests_for_argo_cd_and_flux_can_be_built(cluster: Cluster) -> None:
    kinds = {
        tool: {document["kind"] for document in yaml.safe_load_all(cluster.kubectl("kustomize", GITOPS / tool))}
        for tool in ("argocd", "flux")
    }
    assert kinds == {
        "argocd": {"Application"},
        "flux": {"GitRepository", "HelmRelease", "Kustomization", "Namespace"},
    }


def apply_digits(cluster: Cluster) -> None:
    cluster.kubectl("apply", "--validate=strict", "--kustomize", GITOPS / "digits", "--namespace=team-a")


def delete_digits(cluster: Cluster) -> None:
    # Nobody is there to take the claim's finalizer away.
    cluster.kubectl("delete", "--kustomize", GITOPS / "digits", "--namespace=team-a", "--wait=false")
    merge = ("--namespace=team-a", "--type=merge", '--patch={"metadata":{"finalizers":null}}')
    cluster.kubectl("patch", "persistentvolumeclaim/libraries", *merge)
    # Nor to collect what belonged to the documents; of names that come again the operator waits for the old to go.
    cluster.kubectl("delete", "networkpolicies,services", "--all", "--namespace=team-a")
    left = "ensembles,persistentvolumeclaims"
    wait_until(lambda: not cluster.json("get", left, "--namespace=team-a")["items"], "the documents to be gone")


def digits_versions(cluster: Cluster) -> list[str]:
    items = cluster.json("get", "ensembles,persistentvolumeclaims", "--namespace=team-a")["items"]
    assert len(items) == 4
    return [item["metadata"]["resourceVersion"] for item in items]


def established(cluster: Cluster) -> None:
    """Waits until the server knows our kinds."""
    cluster.kubectl("wait", *CRDS, "--for=condition=Established", "--timeout=60s")
    wait_until(lambda: len(cluster.kubectl("api-resources", "--categories=ensembles").splitlines()) == 4, "our kinds")


def wait_until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end, f"waited {DEADLINE:g} s for {what}"
        time.sleep(0.2)
