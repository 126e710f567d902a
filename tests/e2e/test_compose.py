"""The cluster of `deploy/`, built and brought up in a real container engine, used from outside as its users do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from compose_load import CALLERS, MOST_PER_S, SHARE, TASK, capacity, suffer
from container_engine import Cluster, find_engine, obtain_base_image
from running_system import INFAAS, wait_for

from infaas.client import Client, QueryError
from infaas.demo import family
from infaas.errors import Code, InfaasError
from infaas.testing.faults import LATE_CODES
from infaas.testing.load import BROKEN, OK

CLIENTS = Path(__file__).parent / "clients"
IMAGE_LIMIT_BYTES = 600_000_000
CONTROLLERS = ("controller-1", "controller-2")
WORKERS = ("worker-large-1", "worker-small-1", "worker-small-2")
PROGRAMS = (*CONTROLLERS, *WORKERS, "generator")
SERVICES = (*PROGRAMS, "redis", "postgres", "proxy", "prometheus")
HEARD_AFTER_S = 3.0
"""`controller.worker_lost_after_s`"""
AWAY_S = 6.0

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
    """Of a cluster that is whole, and whose model `simple` is registered, by the command line."""
    with Client(cluster.url, cluster.token) as made:
        wait_for(lambda: _is_connected(made, *WORKERS), "all workers to connect")
        model, evaluation = family.path(family.SIMPLE_FILE), family.path(family.SIMPLE_EVAL_FILE)
        registered = infaas(cluster, "model", "register", model, "--task", TASK, "--eval", evaluation)
        assert "simple version 1 serves with" in registered
        yield made


@pytest.fixture(scope="module")
def rate(cluster: Cluster, client: Client) -> float:
    """Queries per second that leave it alive while parts of it start again."""
    found = capacity(cluster)
    print(f"the whole cluster answers {found:.0f} queries/s")
    return min(MOST_PER_S, SHARE * found)


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


def _is_whole(cluster: Cluster, client: Client) -> bool:
    """Every health check passes, and each controller has the streams of all workers and knows two that serve."""
    if not all(cluster.is_healthy(service) for service in SERVICES) or not _is_connected(client, *WORKERS):
        return False
    for controller in CONTROLLERS:
        listed = json.loads(cluster.execute(controller, "infaas", "worker", "list", "-o", "json"))["workers"]
        if {one["id"] for one in listed if one["is_connected"] and one["state"] == "READY"} != set(WORKERS):
            return False
        if len([one for one in listed if _serving(one)]) < 2:
            return False
    return True


def _serving(worker: dict[str, Any]) -> bool:
    return any(one["state"] == "READY" for one in worker["instances"])


def test_the_image_is_small_and_its_programs_have_no_rights(cluster: Cluster) -> None:
    size = cluster.engine.image_bytes(cluster.image)
    print(f"the image has {size / 1e6:.0f} MB")
    assert size < IMAGE_LIMIT_BYTES
    for service in PROGRAMS:
        assert cluster.execute(service, "id", "-u").strip() == "10001"
        status = cluster.execute(service, "cat", "/proc/1/status")
        assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE), status


def test_every_health_check_passes(cluster: Cluster, client: Client) -> None:
    for service in SERVICES:
        wait_for(lambda service=service: cluster.is_healthy(service), f"{service} to be healthy")


def test_workers_have_what_their_pools_promise(cluster: Cluster, client: Client) -> None:
    listed = json.loads(infaas(cluster, "worker", "list", "-o", "json"))["workers"]
    found = {one["id"]: (one["pool"], one["cores"], one["memory_bytes"], one["address"]) for one in listed}
    sizes = {"small": (1, 2**29), "large": (2, 2**30)}
    pools = {name: name.split("-")[1] for name in WORKERS}
    assert found == {name: (pool, *sizes[pool], f"{name}:9000") for name, pool in pools.items()}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tritonclient_is_answered_from_outside(cluster: Cluster, client: Client, protocol: str) -> None:
    port = cluster.http_port if protocol == "http" else cluster.grpc_port
    words = ("--url", f"127.0.0.1:{port}", "--token", cluster.token)
    script = CLIENTS / f"triton_{protocol}.py"
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok infer" in done.stdout


def test_callers_without_the_token_are_refused(cluster: Cluster, client: Client) -> None:
    url = f"{cluster.url}/v1/models"
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


def test_prometheus_has_scraped_every_target(cluster: Cluster, client: Client) -> None:
    targets = {"controller-1:8002", "controller-2:8002", "proxy:8405", "localhost:9090"}
    wait_for(lambda: _measured(cluster, "up", "instance") == dict.fromkeys(targets, 1.0), "every target to be up")
    wait_for(
        lambda: (
            _measured(cluster, "sum by (instance) (infaas_worker_up)", "instance")
            == dict.fromkeys(("controller-1:8002", "controller-2:8002"), float(len(WORKERS)))
        ),
        "both controllers to tell of all workers",
    )
    wait_for(
        lambda: (
            _measured(cluster, 'sum(haproxy_server_status{state="UP"}) by (proxy)', "proxy")
            == dict.fromkeys(("rest-ready", "rest-live", "grpc-ready", "grpc-live"), 2.0)
        ),
        "the proxy to find both controllers ready",
    )


def _measured(cluster: Cluster, query: str, label: str) -> dict[str, float]:
    """The newest value of each series, by a label."""
    answer = httpx.get(f"{cluster.prometheus_url}/api/v1/query", params={"query": query}, timeout=30.0).json()
    found = {one["metric"][label]: float(one["value"][1]) for one in answer["data"]["result"]}
    print(f"{query}: {found}")
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_container_comes_back_and_costs_callers_what_was_promised(
    cluster: Cluster, client: Client, rate: float, service: str
) -> None:
    """Only callers of what is killed in their way try once more: those of a controller and of the proxy."""
    wait_for(lambda: _is_whole(cluster, client), "the cluster to be whole")
    has_retry = service in (*CONTROLLERS, "proxy")

    def kill() -> None:
        killed = cluster.kill(service)
        wait_for(lambda: cluster.is_restarted(service, killed), f"{service} to be started again by its engine")

    suffered = suffer(cluster, rate, kill, lasts_s=AWAY_S, has_retry=has_retry)
    print(f"{service} killed: {suffered}")
    outcome = suffered.outcome
    assert outcome.hung == 0
    assert outcome.shots[-1].code == OK
    if service == "proxy":  # nothing stands in for it: callers are without an address until it is back
        assert set(outcome.failed) <= {BROKEN}
        assert (outcome.last_failure_s() or suffered.began_s) < suffered.began_s + AWAY_S
    elif service in WORKERS:
        assert outcome.failed.total() <= len(outcome.shots) // 1000, outcome.failed
    else:
        assert not outcome.failed
    wait_for(lambda: _is_whole(cluster, client), "the cluster to be whole again")


def test_a_worker_that_is_cut_off_costs_what_it_holds_and_is_used_again(
    cluster: Cluster, client: Client, rate: float
) -> None:
    wait_for(lambda: _is_whole(cluster, client), "the cluster to be whole")
    cut_off = next(one.id for one in client.workers() if one.instances)

    def partition() -> None:
        cluster.cut_off(cut_off)
        wait_for(lambda: not _is_connected(client, *WORKERS), f"{cut_off} to be missed")
        cluster.join(cut_off)

    suffered = suffer(cluster, rate, partition, lasts_s=AWAY_S)
    print(f"{cut_off} cut off: {suffered}")
    outcome = suffered.outcome
    assert outcome.hung == 0
    # What it held ends at its deadline: two batches of each controller. Everything else is answered by others.
    assert set(outcome.failed) <= LATE_CODES
    assert outcome.failed.total() <= len(outcome.shots) // 100, outcome.failed
    assert (outcome.last_failure_s() or 0.0) < suffered.began_s + HEARD_AFTER_S
    assert outcome.shots[-1].code == OK
    wait_for(lambda: _is_whole(cluster, client), "the cluster to be whole again")
    wait_for(lambda: cut_off in _who_serve(client), f"{cut_off} to answer queries again")


def _who_serve(client: Client) -> set[str]:
    """Workers of some queries that are asked at one time, so that no single worker takes all."""
    values = {name: np.ones((1, 16), np.int32) for name in ("INPUT0", "INPUT1")}
    with ThreadPoolExecutor(CALLERS) as pool:
        answers = list(pool.map(lambda _: client.infer(TASK, values), range(4 * CALLERS)))
    return {answer.served.worker for answer in answers}


def test_without_any_worker_the_one_address_still_says_why(cluster: Cluster, client: Client) -> None:
    """No controller is ready then; operators need the control plane all the more."""
    for worker in WORKERS:
        cluster.engine.run("stop", "-t", "30", cluster.container(worker))
    wait_for(lambda: _is_connected(client), "all workers to be gone")
    with pytest.raises(QueryError) as refused:
        client.infer(TASK, {name: np.ones((1, 16), np.int32) for name in ("INPUT0", "INPUT1")})
    assert (refused.value.code, refused.value.is_retryable) == (Code.NO_WORKER, True)
    assert [one.name for one in client.models()] == ["simple"]
    for worker in WORKERS:
        cluster.engine.run("start", cluster.container(worker))
    wait_for(lambda: _is_connected(client, *WORKERS), "all workers to be back")


def test_a_model_outlives_its_controllers_and_its_worker(cluster: Cluster, client: Client) -> None:
    for controller in CONTROLLERS:
        cluster.engine.run("restart", "-t", "30", cluster.container(controller))
    wait_for(lambda: _is_connected(client, *WORKERS), "all workers to attach to the new controllers")
    assert [(one.name, one.state) for one in client.models()] == [("simple", "READY")]
    first, *others = WORKERS
    cluster.engine.run("stop", "-t", "30", cluster.container(first))
    wait_for(lambda: _is_connected(client, *others), f"{first} to be gone")
    answered = json.loads(infaas(cluster, "infer", TASK, family.path(family.SIMPLE_EVAL_FILE), "-o", "json"))
    assert answered["model"] == TASK
    assert answered["served"]["worker"] in others
    assert {one["name"] for one in answered["outputs"]} == {"OUTPUT0", "OUTPUT1"}
    cluster.engine.run("start", cluster.container(first))
    wait_for(lambda: _is_connected(client, *WORKERS), f"{first} to be back")


def test_no_container_tells_a_secret(cluster: Cluster, client: Client) -> None:
    """Neither its log, nor what the engine tells of it, with labels, variables and command lines."""
    for service in SERVICES:
        said = cluster.said(service)
        assert len(said) > 1000
        for name, secret in cluster.secrets.items():
            assert secret not in said, f"{service} tells the secret {name}"


def test_a_backup_brings_back_what_all_volumes_held(cluster: Cluster, client: Client, tmp_path: Path) -> None:
    """The commands are those of docs/operations.md. Redis is not among them: it is filled from the catalogue."""
    wait_for(lambda: _is_whole(cluster, client), "the cluster to be whole")
    engine, catalogue, artifacts = cluster.engine.name, tmp_path / "catalogue.dump", tmp_path / "artifacts.tar"
    dump = (engine, "exec", cluster.container("postgres"), "pg_dump", "-U", "infaas", "--format=custom", "infaas")
    pack = (engine, "exec", cluster.container("controller-1"), "tar", "-C", "/var/lib/infaas/artifacts", "-c", ".")
    for command, file in ((dump, catalogue), (pack, artifacts)):
        with file.open("wb") as sink:
            subprocess.run(command, stdout=sink, check=True, timeout=60)

    cluster.remove()
    cluster.up("postgres")
    wait_for(lambda: cluster.is_healthy("postgres"), "an empty PostgreSQL")
    words = (engine, "exec", "-i", cluster.container("postgres"), "pg_restore", "-U", "infaas", "--dbname=infaas")
    with catalogue.open("rb") as source:
        subprocess.run(words, stdin=source, check=True, timeout=60)
    volume = f"{cluster.project}_artifacts:/var/lib/infaas/artifacts"
    unpack = (engine, "run", "--rm", "-i", "-v", volume, "--entrypoint", "tar", cluster.image)
    with artifacts.open("rb") as source:
        subprocess.run((*unpack, "-C", "/var/lib/infaas/artifacts", "-x"), stdin=source, check=True, timeout=60)
    cluster.up()
    wait_for(lambda: _is_connected(client, *WORKERS), "all workers to connect")
    wait_for(
        lambda: [(one.name, one.state) for one in client.models()] == [("simple", "READY")], "the model to be back"
    )
    values = {"INPUT0": np.full((1, 16), 40, np.int32), "INPUT1": np.full((1, 16), 2, np.int32)}
    assert (client.infer(TASK, values).outputs["OUTPUT0"] == 42).all()
