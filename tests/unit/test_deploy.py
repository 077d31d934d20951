"""What `deploy/` holds is loadable, consistent with the package, and neither open nor secret."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = sorted(DEPLOY.rglob("*.yaml"))
DOCUMENTS = [document for file in FILES for document in yaml.safe_load_all(file.read_text())]
API_VERSIONS = {"RayCluster": "ray.io/v1", "Deployment": "apps/v1", "Service": "v1"}
SECRET_NAMES = re.compile(r"token|secret|password|api_?key", re.IGNORECASE)


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = (document for document in DOCUMENTS if document["kind"] == kind)
    return found


def walk(node: object) -> Iterator[dict[str, Any]]:
    """Every mapping in `node`."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def pod_specs() -> list[dict[str, Any]]:
    return [mapping for mapping in walk(DOCUMENTS) if "containers" in mapping]


def containers() -> list[dict[str, Any]]:
    return [container for spec in pod_specs() for container in spec["containers"]]


def literal_secrets(documents: object) -> list[str]:
    """Environment variables and Secret documents that carry a secret's value in the file."""
    entries = [mapping for mapping in walk(documents) if SECRET_NAMES.search(str(mapping.get("name", "")))]
    literal = [entry["name"] for entry in entries if "value" in entry]
    return literal + [str(mapping) for mapping in walk(documents) if mapping.get("kind") == "Secret"]


def open_dashboards(documents: object) -> list[dict[str, Any]]:
    """Heads whose dashboard would be on, or heard beyond loopback: KubeRay's default is 0.0.0.0."""
    heads = [mapping["headGroupSpec"] for mapping in walk(documents) if "headGroupSpec" in mapping]
    closed = {"include-dashboard": "false", "dashboard-host": "127.0.0.1"}
    return [head for head in heads if not closed.items() <= head["rayStartParams"].items()]


def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text()


def image_ray_version() -> str:
    (version,) = re.findall(r"^ARG RAY_VERSION=(\S+)$", dockerfile(), re.MULTILINE)
    return version


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["kind"])
def test_every_document_says_what_it_is(document: dict[str, Any]) -> None:
    assert document["apiVersion"] == API_VERSIONS[document["kind"]]
    assert document["metadata"]["name"]
    assert document["spec"]


def test_the_ray_cluster_has_a_head_a_gpu_worker_group_and_token_authentication() -> None:
    spec = of_kind("RayCluster")["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    (group,) = spec["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    (worker,) = group["template"]["spec"]["containers"]
    assert int(worker["resources"]["limits"]["nvidia.com/gpu"]) * group["replicas"] >= 2
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]


def test_ray_start_parameters_are_strings_as_the_resource_definition_demands() -> None:
    parameters = [mapping["rayStartParams"] for mapping in walk(DOCUMENTS) if "rayStartParams" in mapping]
    assert all(isinstance(value, str) for mapping in parameters for value in mapping.values())


def test_image_and_cluster_run_one_ray_that_the_package_allows() -> None:
    (ray,) = (Requirement(line) for line in PROJECT["dependencies"] if line.startswith("ray"))
    assert of_kind("RayCluster")["spec"]["rayVersion"] == image_ray_version()
    assert image_ray_version() in ray.specifier


def test_every_container_runs_this_version_of_headway() -> None:
    assert {container["image"] for container in containers()} == {f"headway:{PROJECT['version']}"}


def test_the_front_end_serves_over_ray_with_its_token_from_a_secret() -> None:
    (frontend,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    (command,) = frontend["args"]
    assert 'headway serve demo --tp 2 --device cuda --ray "$RAY_HEAD" --grpc 0.0.0.0:50051' in command
    from_secrets = {
        entry["name"] for entry in frontend["env"] if "secretKeyRef" in entry.get("valueFrom", {})
    }
    assert from_secrets == {"RAY_AUTH_TOKEN", "HEADWAY_TOKEN"}
    assert {"name": "RAY_AUTH_MODE", "value": "token"} in frontend["env"]


def test_the_front_end_is_ready_when_grpc_health_says_so() -> None:
    (frontend,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    assert frontend["readinessProbe"]["grpc"] == frontend["startupProbe"]["grpc"] == {"port": 50051}
    (port,) = of_kind("Service")["spec"]["ports"]
    assert port["port"] == 50051
    assert of_kind("Service")["spec"]["selector"].items() <= (
        of_kind("Deployment")["spec"]["template"]["metadata"]["labels"].items()
    )


def test_nothing_runs_as_root_or_gains_privileges() -> None:
    assert all(spec["securityContext"]["runAsNonRoot"] is True for spec in pod_specs())
    assert all(
        container["securityContext"]["allowPrivilegeEscalation"] is False for container in containers()
    )
    assert re.search(r"^USER 1000$", dockerfile(), re.MULTILINE)


def test_volumes_that_are_mounted_exist() -> None:
    for spec in pod_specs():
        mounted = {mount["name"] for each in spec["containers"] for mount in each.get("volumeMounts", ())}
        assert mounted <= {volume["name"] for volume in spec.get("volumes", ())}


def test_no_secret_is_written_down() -> None:
    assert literal_secrets(DOCUMENTS) == []
    assert not re.search(r"^(ARG|ENV)\b.*(TOKEN|SECRET|PASSWORD|KEY)\b", dockerfile(), re.MULTILINE)


def test_no_dashboard_listens_beyond_loopback() -> None:
    assert open_dashboards(DOCUMENTS) == []


def test_the_checks_above_find_a_planted_secret_and_a_planted_dashboard() -> None:
    assert literal_secrets([{"env": [{"name": "HEADWAY_TOKEN", "value": "hunter2"}]}]) == ["HEADWAY_TOKEN"]
    assert literal_secrets([{"kind": "Secret", "stringData": {"auth": "hunter2"}}])
    for planted in ({}, {"include-dashboard": "false"}, {"dashboard-host": "0.0.0.0"}):
        assert open_dashboards([{"spec": {"headGroupSpec": {"rayStartParams": planted}}}])
