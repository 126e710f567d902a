"""The cluster of `deploy/`, built and brought up in a real container engine, used from outside as its users do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from container_engine import Cluster, find_engine, obtain_base_image
from running_system import INFAAS, wait_for

from infaas.client import Client
from infaas.demo import family
from infaas.errors import InfaasError

CLIENTS = Path(__file__).parent / "clients"
IMAGE_LIMIT_BYTES = 600_000_000
HEALTH_CHECKED = ("redis", "controller", "worker-1", "worker-2")
SERVICES = (*HEALTH_CHECKED, "generator")

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Up once for the whole file; skips where no engine works or the base image cannot be had."""
    engine = find_engine()
    if isinstance(engine, str):
        pytest.skip(engine)
    reason = obtain_base_image(engine)
    if reason is not None:
        pytest.skip(reason)
    made = Cluster(engine)
    try:
        made.build()
        made.up()
        yield made
        for service in SERVICES:
            print(f"--- {service}\n{made.logs(service)}")
    finally:
        made.down()


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[Client]:
    """Of a cluster whose workers are both connected and whose model `simple` is registered, by the command line."""
    with Client(cluster.url, cluster.token) as made:
        wait_for(lambda: _is_connected(made, "worker-1", "worker-2"), "both workers to connect")
        model, evaluation = family.path(family.SIMPLE_FILE), family.path(family.SIMPLE_EVAL_FILE)
        registered = infaas(cluster, "model", "register", model, "--task", "integers", "--eval", evaluation)
        assert "simple version 1 serves with" in registered
        yield made


def infaas(cluster: Cluster, *words: str | Path) -> str:
    """The command line of this checkout, outside the cluster."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}
    environ |= {"INFAAS_URL": cluster.url, "INFAAS_TOKEN": cluster.token}
    done = subprocess.run([INFAAS, *words], env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _is_connected(client: Client, *workers: str) -> bool:
    """The controller answers, and these workers are ready and attached to it."""
    try:
        found = {one.id for one in client.workers() if one.is_connected and one.state == "READY"}
    except InfaasError as error:
        # While a container starts, its published port refuses, resets or answers not yet.
        print(f"not yet: {error}")
        return False
    return found == set(workers)


def test_the_image_is_small_and_its_programs_have_no_rights(cluster: Cluster) -> None:
    size = cluster.engine.image_bytes(cluster.image)
    print(f"the image has {size / 1e6:.0f} MB")
    assert size < IMAGE_LIMIT_BYTES
    for service in ("controller", "generator", "worker-1", "worker-2"):
        assert cluster.engine.run("exec", cluster.container(service), "id", "-u").strip() == "10001"


def test_every_health_check_passes(cluster: Cluster, client: Client) -> None:
    for service in HEALTH_CHECKED:
        wait_for(lambda service=service: cluster.is_healthy(service), f"{service} to be healthy")


def test_both_workers_are_listed(cluster: Cluster, client: Client) -> None:
    listed = json.loads(infaas(cluster, "worker", "list", "-o", "json"))["workers"]
    found = {one["id"]: (one["state"], one["is_connected"], one["address"]) for one in listed}
    assert found == {name: ("READY", True, f"{name}:9000") for name in ("worker-1", "worker-2")}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tritonclient_is_answered_from_outside(cluster: Cluster, client: Client, protocol: str) -> None:
    port = cluster.http_port if protocol == "http" else cluster.grpc_port
    words = ("--url", f"127.0.0.1:{port}", "--token", cluster.token)
    script = CLIENTS / f"triton_{protocol}.py"
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok infer" in done.stdout


def test_callers_without_the_token_are_refused(cluster: Cluster, client: Client) -> None:
    for url in (f"{cluster.url}/v1/models", f"http://127.0.0.1:{cluster.metrics_port}/metrics"):
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert httpx.get(url, headers={"authorization": f"Bearer {cluster.token}"}).status_code == 200


def test_a_cluster_without_a_token_does_not_start(cluster: Cluster) -> None:
    for program, variable in (
        ("controller", "INFAAS_CONTROLLER__HOST=0.0.0.0"),
        ("worker", "INFAAS_WORKER__LISTEN=:9000"),
    ):
        done = subprocess.run(
            [cluster.engine.name, "run", "--rm", "-e", variable, cluster.image, "run", program],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2
        assert "only loopback may be bound" in done.stderr


def test_a_model_outlives_its_controller_and_its_worker(cluster: Cluster, client: Client) -> None:
    cluster.engine.run("restart", "-t", "30", cluster.container("controller"))
    wait_for(lambda: _is_connected(client, "worker-1", "worker-2"), "both workers to attach to the new controller")
    assert [(one.name, one.state) for one in client.models()] == [("simple", "READY")]

    cluster.engine.run("stop", "-t", "30", cluster.container("worker-1"))
    wait_for(lambda: _is_connected(client, "worker-2"), "worker-1 to be gone")
    task, data = "integers", family.path(family.SIMPLE_EVAL_FILE)
    answered = json.loads(infaas(cluster, "infer", task, data, "-o", "json"))
    assert answered["model"] == task
    assert answered["served"]["worker"] == "worker-2"
    assert {one["name"] for one in answered["outputs"]} == {"OUTPUT0", "OUTPUT1"}

    cluster.engine.run("start", cluster.container("worker-1"))
    wait_for(lambda: _is_connected(client, "worker-1", "worker-2"), "worker-1 to be back")
