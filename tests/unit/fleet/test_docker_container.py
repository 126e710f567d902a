"""What the container of a worker is made of, and what is read from an engine's answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from infaas_controller.providers import docker_container as container
from infaas_controller.providers.base import MachineState, Order, ProviderError
from infaas_controller.providers.docker import DockerProvider

from infaas.domain.ids import WorkerId
from infaas.errors import InvalidError, SettingsError
from infaas.settings import PoolSettings, Settings, load_settings

TOKEN = "the-token-of-the-cluster"
PASSWORD = "the-password-of-the-store"
ORDER = Order("f-1", "small", WorkerId("small-f-1"), 1_700_000_000.25, "epoch")
POOL = {"workers": 0, "max_workers": 3, "cores": 2, "memory_bytes": 2**30, "cpu_limit": 0.25, "price_usd_per_hour": 0.1}


def settings(**told: Any) -> Settings:
    """Of a cluster whose fleet is `docker`; `docker` is laid over its section."""
    docker = {"image": "infaas:1", "network": "net"} | told.pop("docker", {})
    base: dict[str, Any] = {
        "store": {"redis_url": f"redis://:{PASSWORD}@redis:6379/0"},
        "auth": {"token": TOKEN},
        "pools": {"small": POOL},
        "fleet": {"provider": "docker", "docker": docker},
    }
    return load_settings(environ={}, overrides=base | told)


def environ(given: Settings) -> dict[str, str]:
    return dict(one.split("=", 1) for one in container.body(given, ORDER)["Env"])


def test_a_worker_is_told_who_it_is_and_where_the_rest_is() -> None:
    told = environ(settings(repository={"url": "/srv/artifacts"}, worker={"heartbeat_s": 2.0, "id": "another"}))
    assert json.loads(told.pop("INFAAS_POOLS")) == {
        "small": {"cores": 2, "memory_bytes": 2**30, "price_usd_per_hour": 0.1}
    }
    assert told == {
        "INFAAS_STORE__REDIS_URL": f"redis://:{PASSWORD}@redis:6379/0",
        "INFAAS_REPOSITORY__URL": "/srv/artifacts",
        "INFAAS_AUTH__TOKEN": TOKEN,
        "INFAAS_WORKER__HEARTBEAT_S": "2.0",
        "INFAAS_WORKER__ID": "small-f-1",
        "INFAAS_WORKER__POOL": "small",
        "INFAAS_WORKER__LISTEN": "0.0.0.0:9000",
        "INFAAS_WORKER__ADVERTISE": "auto:9000",
    }


def test_secrets_in_files_are_read_for_workers_that_do_not_have_them(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    told = environ(settings(auth={"token_file": str(file)}))
    assert told["INFAAS_AUTH__TOKEN"] == TOKEN
    assert "INFAAS_AUTH__TOKEN_FILE" not in told
    assert environ(settings(auth={"token": "first", "token_file": str(file)}))["INFAAS_AUTH__TOKEN"] == "first"
    assert environ(settings(auth={"token": None, "token_file": str(file)}))["INFAAS_AUTH__TOKEN"] == TOKEN
    file.unlink()
    with pytest.raises(ProviderError, match="a secret that workers are to be told cannot be read"):
        environ(settings(auth={"token_file": str(file)}))


def test_what_is_for_other_parts_is_not_told(tmp_path: Path) -> None:
    given = settings(
        catalog={"database_url": "postgresql://infaas@db/infaas", "password": "of-the-catalogue"},
        controller={"http_port": 1},
        state_dir=str(tmp_path),
    )
    assert "of-the-catalogue" not in str(container.body(given, ORDER))
    assert environ(given).keys() == environ(settings()).keys()


def test_a_worker_can_start_with_what_it_is_told() -> None:
    given = settings(log={"level": "debug", "format": "console"}, worker={"autoscaling": {"max_replicas": 2}})
    worker = load_settings(environ=environ(given))
    assert (worker.worker.id, worker.worker.pool, worker.token()) == ("small-f-1", "small", TOKEN)
    assert worker.redis_url == given.redis_url
    assert worker.worker.autoscaling.max_replicas == 2
    assert (worker.log.level, worker.log.format) == ("debug", "console")
    pool = worker.pools["small"]
    assert (pool.cores, pool.memory_bytes, pool.price_usd_per_hour) == (2, 2**30, 0.1)


def test_what_an_operator_says_to_workers_goes_over_what_controllers_were_told() -> None:
    given = settings(
        docker={"environment": {"INFAAS_STORE__REDIS_URL": "redis://10.0.0.1", "OMP_NUM_THREADS": 1}},
        repository={"url": "/srv/artifacts"},
    )
    told = environ(given)
    assert (told["INFAAS_STORE__REDIS_URL"], told["OMP_NUM_THREADS"]) == ("redis://10.0.0.1", "1")


@pytest.mark.parametrize("name", ["INFAAS_AUTH__TOKEN", "INFAAS_AUTH__TOKEN_FILE"])
def test_a_worker_with_a_credential_of_its_own_is_told_no_other(name: str) -> None:
    told = environ(settings(docker={"environment": {name: "/run/secrets/token"}}))
    assert {one: value for one, value in told.items() if one.startswith("INFAAS_AUTH")} == {name: "/run/secrets/token"}


def test_labels_hold_the_order_and_no_secret() -> None:
    labels = container.body(settings(), ORDER)["Labels"]
    assert container.order_of(labels) == ORDER
    assert TOKEN not in str(labels)
    assert PASSWORD not in str(labels)


def test_a_container_is_limited_and_has_no_rights() -> None:
    volumes = ["artifacts:/var/lib/infaas/artifacts:ro", "/srv/token:/run/token"]
    body = container.body(
        settings(docker={"volumes": volumes, "user": "10001:10001"}, worker={"drain_timeout_s": 7}), ORDER
    )
    host = body["HostConfig"]
    assert (body["Image"], body["Cmd"], body["User"], body["Hostname"]) == (
        "infaas:1", ["run", "worker"], "10001:10001", "infaas-f-1",
    )  # fmt: skip
    assert (body["StopSignal"], body["StopTimeout"]) == ("SIGTERM", 12)
    assert (host["Memory"], host["CpuPeriod"], host["CpuQuota"]) == (2**30 + 2**29, 10_000, 2_500)
    assert (host["CapDrop"], host["SecurityOpt"], host["Init"]) == (["ALL"], ["no-new-privileges"], True)
    assert (host["RestartPolicy"], host["NetworkMode"]) == ({"Name": "no"}, "net")
    assert host["Mounts"] == [
        {"Type": "volume", "Source": "artifacts", "Target": "/var/lib/infaas/artifacts", "ReadOnly": True},
        {"Type": "bind", "Source": "/srv/token", "Target": "/run/token", "ReadOnly": False},
    ]


def test_what_nobody_limits_is_not_limited() -> None:
    host = container.body(settings(pools={"small": {"workers": 0, "max_workers": 1, "cores": 1}}), ORDER)["HostConfig"]
    assert not {"Memory", "CpuPeriod", "CpuQuota"} & host.keys()


def test_an_order_of_an_unknown_pool_is_refused() -> None:
    with pytest.raises(ProviderError, match="there is no pool 'gone'"):
        container.body(settings(), Order("f-1", "gone", WorkerId("gone-f-1"), 1.0, "epoch"))


def test_clusters_are_told_apart_by_network_and_store_and_not_by_a_password() -> None:
    def mark(url: str, **docker: Any) -> str:
        return container.cluster_mark(settings(store={"redis_url": url}, docker=docker))

    here = mark("redis://redis:6379/0")
    assert mark("redis://:secret@redis:6379/0") == mark("redis://user:other@redis:6379/0?x=1") == here
    others = {mark("redis://redis:6379/0", network="other"), mark("redis://redis:6379/1"), mark("redis://other:6379/0")}
    assert len({here, *others}) == 4
    elsewhere = {"environment": {"INFAAS_STORE__REDIS_URL": "redis://redis:6379/0"}}
    assert mark("redis://127.0.0.1:6379/0", **elsewhere) == here, "what counts is where workers find it"
    assert mark("redis://redis:6379/0", cluster="blue") == "blue"


def test_a_cluster_without_a_token_makes_no_containers() -> None:
    with pytest.raises(SettingsError, match=r"set auth\.cluster_token_file, or auth\.token_file"):
        container.check(settings(auth={}))
    container.check(settings(auth={}, docker={"environment": {"INFAAS_AUTH__TOKEN_FILE": "/run/token"}}))
    container.check(settings(auth={"cluster_token": "between"}))


def test_workers_are_not_told_the_callers_token_where_parts_have_one_of_their_own() -> None:
    told = container.environ(settings(auth={"token": "callers", "cluster_token": "between"}), ORDER, PoolSettings())
    assert told["INFAAS_AUTH__CLUSTER_TOKEN"] == "between"
    assert "callers" not in told.values()
    mounted = settings(
        auth={"token": "callers"}, docker={"environment": {"INFAAS_AUTH__CLUSTER_TOKEN_FILE": "/run/cluster"}}
    )
    assert "callers" not in container.environ(mounted, ORDER, PoolSettings()).values()
    alone = container.environ(settings(auth={"token": "callers"}), ORDER, PoolSettings())
    assert alone["INFAAS_AUTH__TOKEN"] == "callers"


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("created", MachineState.STARTING),
        ("running", MachineState.RUNNING),
        ("paused", MachineState.RUNNING),
        ("stopping", MachineState.RUNNING),
        ("exited", MachineState.ENDED),
        ("Dead", MachineState.ENDED),
        ("removing", MachineState.ENDED),
    ],
)
def test_states_of_engines_have_a_meaning(word: str, state: MachineState) -> None:
    assert container.state_of(word) is state


def test_what_has_ended_says_how_and_its_last_lines_without_secrets() -> None:
    log = b"first\nsecond\n\nredis://:hunter2@redis is away\nlast\n"
    said = container.last_words({"ExitCode": 137, "OOMKilled": True}, log)
    assert said.startswith("exit code 137; out of memory: ")
    assert said.endswith("its log ends with: second | redis://:[hidden]@redis is away | last")
    assert container.last_words({"ExitCode": 0}, b"") == "exit code 0"


def test_a_label_that_is_no_order_is_an_error_of_its_own() -> None:
    for labels in ({}, {container.ORDER_LABEL: "{}"}, {container.ORDER_LABEL: "nonsense"}):
        with pytest.raises(InvalidError):
            container.order_of(labels)


@pytest.mark.parametrize("user", ["", "0", "root", "0:10001", "root:infaas"])
def test_an_image_that_runs_as_root_is_told_from_others(user: str) -> None:
    assert container.runs_as_root(settings(), {"Config": {"User": user}})
    assert not container.runs_as_root(settings(docker={"user": "10001"}), {"Config": {"User": user}})
    assert not container.runs_as_root(settings(), {"Config": {"User": "infaas"}})


def test_when_a_container_has_ended_is_read_from_the_engine() -> None:
    assert container.finished_at({"FinishedAt": "1970-01-01T00:01:40.250000001Z"}) == 100.25
    assert container.finished_at({"FinishedAt": "1970-01-01T02:00:10+02:00"}) == 10.0
    for told in ({}, {"FinishedAt": "0001-01-01T00:00:00Z"}, {"FinishedAt": "soon"}):
        assert container.finished_at(told) == 0.0


def test_without_its_extra_the_provider_says_which_one_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(SettingsError, match=r"docker is not installed; `pip install 'infaas\[docker\]'"):
        DockerProvider(settings())


async def test_nobody_is_asked_before_there_is_something_to_ask() -> None:
    """A controller starts without its engine, and says so when it needs it."""
    pytest.importorskip("docker")
    provider = DockerProvider(settings(docker={"url": "unix:///nowhere/engine.sock"}))
    with pytest.raises(ProviderError, match=r"the engine at unix:///nowhere/engine\.sock cannot be reached"):
        await provider.list()
