"""`deploy/kubernetes` fits Kubernetes' schemas, the programs' settings, and itself. No cluster is asked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from infaas.settings import Settings, load_settings

FOLDER = Path(__file__).parents[3] / "deploy" / "kubernetes"
VERSIONS = ("1.29", "1.31", "1.33")
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
Resource = dict[str, Any]


def resources_of(file: str) -> list[Resource]:
    return [one for one in yaml.safe_load_all((FOLDER / file).read_text()) if one]


APPLIED: list[Resource] = list(chain.from_iterable(resources_of(file) for file in KUSTOMIZATION["resources"]))
WORKLOADS = [one for one in APPLIED if one["kind"] in ("Deployment", "StatefulSet")]
OURS = [one for one in WORKLOADS if one["spec"]["template"]["spec"]["containers"][0]["image"] == "infaas"]


def named(resource: Resource) -> str:
    return f"{resource['kind']}/{resource['metadata']['name']}"


def container_of(workload: Resource) -> dict[str, Any]:
    (found,) = workload["spec"]["template"]["spec"]["containers"]
    return dict(found)


def find(kind: str, name: str) -> Resource:
    (found,) = [one for one in APPLIED if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def environ_of(workload: Resource) -> dict[str, str]:
    """What its program finds, with a pod's address and name for `$(POD_IP)` and `$(POD_NAME)`."""
    container = container_of(workload)
    environ: dict[str, str] = {}
    for source in container.get("envFrom", []):
        environ |= find("ConfigMap", source["configMapRef"]["name"])["data"]
    for one in container.get("env", []):
        if "value" in one:
            environ[one["name"]] = one["value"].replace("$(POD_IP)", "10.0.0.7").replace("$(POD_NAME)", "pod-0")
    return environ


def settings_of(workload: Resource) -> Settings:
    return load_settings(environ=environ_of(workload))


def test_the_folder_is_marked_as_not_yet_run_on_a_cluster() -> None:
    assert "NOT YET RUN ON A CLUSTER" in (FOLDER / "kustomization.yaml").read_text()


def test_every_file_is_applied_or_an_example() -> None:
    files = {path.name for path in FOLDER.glob("*.yaml")}
    assert files == {*KUSTOMIZATION["resources"], "kustomization.yaml", "secret.example.yaml"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("resource", [*APPLIED, *resources_of("secret.example.yaml")], ids=named)
def test_every_resource_fits_the_schema(resource: Resource, version: str) -> None:
    kubernetes_validate.validate(resource, version, strict=True)


def test_the_schema_refuses_what_kubernetes_does_not_know() -> None:
    wrong = copy.deepcopy(find("Deployment", "infaas-controller"))
    container_of(wrong)["readinessProbe"]["failuresThreshold"] = 3
    with pytest.raises(kubernetes_validate.ValidationError, match="failuresThreshold"):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("workload", OURS, ids=named)
def test_every_variable_of_a_program_is_a_setting(workload: Resource) -> None:
    assert settings_of(workload).store.redis_url == "redis://infaas-redis:6379"


@pytest.mark.parametrize("workload", OURS, ids=named)
def test_no_service_becomes_a_setting(workload: Resource) -> None:
    """Kubernetes would add `INFAAS_PORT` and the like, and a program refuses what it does not know."""
    assert workload["spec"]["template"]["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize("workload", WORKLOADS, ids=named)
def test_a_pod_has_no_more_rights_than_it_needs(workload: Resource) -> None:
    pod = workload["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container_of(workload)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("workload", WORKLOADS, ids=named)
def test_a_container_is_probed_in_three_ways_and_bounded(workload: Resource) -> None:
    container = container_of(workload)
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)
    assert {"cpu", "memory"} == set(container["resources"]["requests"]) == set(container["resources"]["limits"])
    ports = {one["name"]: one["containerPort"] for one in container.get("ports", [])}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe].get("httpGet") or container[probe].get("grpc") or container[probe].get("tcpSocket")
        assert asked is None or asked["port"] in {*ports, *ports.values()}


@pytest.mark.parametrize("workload", OURS, ids=named)
def test_a_pod_has_the_time_that_its_program_takes_to_drain(workload: Resource) -> None:
    pod, settings = workload["spec"]["template"]["spec"], settings_of(workload)
    hook = container_of(workload).get("lifecycle", {}).get("preStop", {}).get("exec", {"command": ["sleep", "0"]})
    drain_s = max(settings.controller.drain_timeout_s, settings.worker.drain_timeout_s)
    assert pod["terminationGracePeriodSeconds"] > drain_s + float(hook["command"][1])


@pytest.mark.parametrize("workload", WORKLOADS, ids=named)
def test_what_a_pod_mounts_exists_and_what_it_reads_is_mounted(workload: Resource) -> None:
    pod, container = workload["spec"]["template"]["spec"], container_of(workload)
    claims = {one["metadata"]["name"] for one in workload["spec"].get("volumeClaimTemplates", [])}
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert {one["name"] for one in container["volumeMounts"]} == {*volumes, *claims}
    (secret,) = KUSTOMIZATION["secretGenerator"]
    known = {Path(file).name for file in secret["files"]}
    assert volumes["secrets"]["secret"]["secretName"] == secret["name"]
    keys = {one["key"] for one in volumes["secrets"]["secret"]["items"]}
    assert keys <= known == set(resources_of("secret.example.yaml")[0]["stringData"])
    if workload in OURS:
        settings = settings_of(workload)
        own = settings.auth
        files = [own.token_file, own.cluster_token_file, settings.store.password_file, settings.catalog.password_file]
        assert {str(file) for file in files if file} == {f"/run/secrets/infaas/{key}" for key in keys}
        find("PersistentVolumeClaim", volumes["artifacts"]["persistentVolumeClaim"]["claimName"])


def test_workers_are_of_two_sizes_and_are_granted_what_their_pools_promise() -> None:
    workers = [one for one in OURS if container_of(one)["args"] == ["run", "worker"]]
    pools = {}
    for worker in workers:
        settings, resources = settings_of(worker), container_of(worker)["resources"]
        assert resources["requests"] == resources["limits"]
        assert float(resources["limits"]["cpu"]) == settings.pools[settings.worker.pool].cores
        assert settings.worker.id == "pod-0"
        assert settings.worker.advertise == "10.0.0.7:9000"
        pools[settings.worker.pool] = resources["limits"]["cpu"]
    assert pools == {"small": "1", "large": "2"}


def selectors() -> Iterator[tuple[str, dict[str, str]]]:
    for one in APPLIED:
        if one["kind"] == "Service":
            yield named(one), one["spec"]["selector"]
        if one["kind"] in ("PodDisruptionBudget", "Deployment", "StatefulSet"):
            yield named(one), one["spec"]["selector"]["matchLabels"]
        if one["kind"] == "NetworkPolicy":
            yield named(one), one["spec"]["podSelector"].get("matchLabels", {})


@pytest.mark.parametrize(("name", "labels"), list(selectors()))
def test_every_selector_finds_pods(name: str, labels: dict[str, str]) -> None:
    pods = [one["spec"]["template"]["metadata"]["labels"] for one in WORKLOADS]
    assert any(labels.items() <= pod.items() for pod in pods), name


def test_services_and_policies_name_ports_that_their_pods_have() -> None:
    for one in APPLIED:
        if one["kind"] == "Service":
            labels, wanted = one["spec"]["selector"], {port["targetPort"] for port in one["spec"]["ports"]}
        elif one["kind"] == "NetworkPolicy" and one["spec"].get("ingress"):
            labels = one["spec"]["podSelector"]["matchLabels"]
            wanted = {port["port"] for rule in one["spec"]["ingress"] for port in rule["ports"]}
        else:
            continue
        for workload in WORKLOADS:
            if labels.items() <= workload["spec"]["template"]["metadata"]["labels"].items():
                assert wanted <= {port["name"] for port in container_of(workload)["ports"]}, named(one)


def test_controllers_and_each_pool_of_workers_lose_one_pod_at_a_time() -> None:
    budgets = [one["spec"] for one in APPLIED if one["kind"] == "PodDisruptionBudget"]
    assert all(one["maxUnavailable"] == 1 for one in budgets)
    for workload in OURS:
        if container_of(workload)["args"][1] != "generator":
            assert any(one["selector"] == workload["spec"]["selector"] for one in budgets), named(workload)
