"""What `deploy/docker-compose.yml` says fits the programs' settings, and its own parts fit each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infaas.errors import SettingsError
from infaas.settings import Settings, load_settings

DEPLOY = Path(__file__).parents[3] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
OVERRIDE: dict[str, Any] = yaml.safe_load((DEPLOY / "docker-compose.debian.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "INFAAS_IMAGE" in service["image"])
CONTROLLERS = [name for name in OURS if name.startswith("controller")]
WORKERS = [name for name in OURS if name.startswith("worker")]


def settings_of(service: str) -> Settings:
    return load_settings(environ=SERVICES[service]["environment"])


def test_there_are_two_controllers_three_workers_of_two_sizes_and_a_generator() -> None:
    assert CONTROLLERS == ["controller-1", "controller-2"]
    assert sorted((settings_of(name).worker.pool, SERVICES[name]["cpus"]) for name in WORKERS) == [
        ("large", "2.0"),
        ("small", "1.0"),
        ("small", "1.0"),
    ]
    assert set(OURS) - {*CONTROLLERS, *WORKERS} == {"generator"}


@pytest.mark.parametrize("service", OURS)
def test_every_variable_of_a_program_is_a_setting(service: str) -> None:
    found = settings_of(service)
    assert found.store.redis_url == "redis://redis:6379"
    with pytest.raises(SettingsError, match="unknown setting"):
        load_settings(environ={**SERVICES[service]["environment"], "INFAAS_WORKER__CORS": "1"})


@pytest.mark.parametrize("service", OURS)
def test_every_secret_that_a_program_reads_is_mounted(service: str) -> None:
    found = settings_of(service)
    own = found.auth
    files = [own.token_file, own.cluster_token_file, found.store.password_file, found.catalog.password_file]
    wanted = {f"/run/secrets/{name}" for name in SERVICES[service]["secrets"]}
    assert {str(file) for file in files if file is not None} == wanted
    assert set(SERVICES[service]["secrets"]) <= set(COMPOSE["secrets"])


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_every_service_is_checked_started_again_and_given_time_to_end(service: str) -> None:
    found = SERVICES[service]
    assert found["healthcheck"]["test"][0] == "CMD-SHELL"
    assert found["restart"] == "unless-stopped"
    grace_s = float(found["stop_grace_period"].removesuffix("s"))
    if service in OURS:
        settings = settings_of(service)
        assert grace_s > max(settings.controller.drain_timeout_s, settings.worker.drain_timeout_s)


@pytest.mark.parametrize("service", WORKERS)
def test_a_worker_is_granted_the_cores_that_its_pool_promises(service: str) -> None:
    settings = settings_of(service)
    assert settings.pools[settings.worker.pool].cores == float(SERVICES[service]["cpus"])
    assert settings.worker.id == service
    assert settings.worker.advertise == f"{service}:9000"


def test_only_the_proxy_and_prometheus_are_published_and_on_loopback_unless_told() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"proxy", "prometheus"}
    hosts = {port.rsplit(":", 2)[0] for ports in published.values() for port in ports}
    assert all(host.startswith(("127.0.0.1", "${INFAAS_PUBLISH:-127.0.0.1}")) for host in hosts), hosts


def test_the_proxy_knows_every_controller_at_every_port_ready_or_only_live() -> None:
    text = (DEPLOY / "haproxy.cfg").read_text()
    backends = dict(re.findall(r"^backend (\S+)\n((?:  .*\n)+)", text, re.MULTILINE))
    assert set(backends) == {f"{what}-{state}" for what in ("rest", "grpc") for state in ("ready", "live")}
    for name, body in backends.items():
        what, state = name.split("-")
        port = "8000" if what == "rest" else "8001"
        assert re.findall(r"server \S+ (\S+):(\d+)", body) == [(one, port) for one in CONTROLLERS]
        if what == "rest":
            assert f"uri /v2/health/{state} " in body
        else:
            assert re.findall(r" track (\S+)$", body, re.MULTILINE) == [f"rest-{state}/{one}" for one in CONTROLLERS]


def test_prometheus_asks_every_controller_and_the_proxy_with_a_token_of_one_line() -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]}
    targets = {name: set(job["static_configs"][0]["targets"]) for name, job in jobs.items()}
    assert targets == {
        "controller": {f"{name}:8002" for name in CONTROLLERS},
        "proxy": {"proxy:8405"},
        "prometheus": {"localhost:9090"},
    }
    assert jobs["controller"]["authorization"]["credentials_file"] == "/run/secrets/prometheus"
    assert SERVICES["prometheus"]["secrets"] == ["prometheus"]


def test_only_controllers_know_the_callers_token_and_all_parts_the_clusters() -> None:
    assert [name for name in OURS if settings_of(name).auth.token_file is not None] == CONTROLLERS
    assert [name for name in OURS if settings_of(name).auth.cluster_token_file is not None] == OURS


def test_the_override_replaces_every_image_that_is_not_ours_by_one_that_is_built_here() -> None:
    assert set(OVERRIDE["services"]) == set(SERVICES) - set(OURS)
    for service in OVERRIDE["services"].values():
        dockerfile = DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]
        assert dockerfile.read_text().startswith("FROM docker.io/library/python:3.11-slim\n")


def test_no_secret_stands_in_the_file() -> None:
    for name, service in SERVICES.items():
        for variable in service.get("environment", {}):
            assert not re.search("(TOKEN|PASSWORD)$", variable), f"{name} is given {variable}; name a file instead"
