"""The generator as the program it is: killed, stopped, taken over, and beside a real worker."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infaas.rpc.codec import encode
from infaas.store.base import Kind
from infaas.store.redis import RedisStore
from infaas.testing.certificates import Authority
from infaas.up.restart import SETTINGS_EXIT

pytestmark = pytest.mark.long

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(workshop: Any, own_redis_server: Any) -> Iterator[Start]:
    """Starts a program of the system on the test's own Redis and state folder."""
    started: list[subprocess.Popen[bytes]] = []

    def run(program: str, **settings: str) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}
        environment |= {
            "INFAAS_STATE_DIR": str(workshop.state_dir),
            "INFAAS_STORE__REDIS_URL": own_redis_server.url,
            "INFAAS_GENERATOR__LEASE_TTL_S": "1.0",
            **settings,
        }
        log = (workshop.state_dir / f"{program}-{len(started)}.log").open("wb")
        process = subprocess.Popen([sys.executable, "-m", "infaas.programs", program], env=environment, stderr=log)
        log.close()
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
async def store(own_redis_server: Any) -> Any:
    store = RedisStore(own_redis_server.url)
    yield store
    await store.close()


def child_of(process: subprocess.Popen[bytes], module: str) -> psutil.Process | None:
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any(module in word for word in child.cmdline()):
                return child
        except psutil.NoSuchProcess:
            continue
    return None


def work_left_by(pid: int) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"infaas-generator-{pid}-*"))


def mapped_by(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


async def measuring(workshop: Any, generator: subprocess.Popen[bytes]) -> psutil.Process:
    """The generator's measuring child, once there is one."""

    async def check() -> psutil.Process | None:
        assert generator.poll() is None
        return child_of(generator, "infaas_variant_generator.measure")

    found: psutil.Process = await workshop.until(check)
    return found


async def test_a_token_file_that_is_emptied_between_two_builds_changes_nothing(
    workshop: Any, start: Start, store: RedisStore
) -> None:
    token = workshop.state_dir / "cluster"
    token.write_text("first")
    generator = start("generator", INFAAS_AUTH__CLUSTER_TOKEN_FILE=str(token))
    for model in ("one", "two"):
        order = workshop.order(model)
        await store.put(Kind.BUILD, order.id, encode(order))
        assert (await workshop.finished(store, order))["*"].outcome == "made"
        token.write_text("")
    assert generator.poll() is None


@pytest.mark.parametrize("variable", ["INFAAS_AUTH__CLUSTER_TOKEN_FILE", "INFAAS_TLS__KEY_FILE"])
def test_a_credential_that_cannot_be_read_at_the_start_is_a_wrong_setting(
    workshop: Any, start: Start, tmp_path: Path, variable: str
) -> None:
    issued = Authority(tmp_path / "ca").issue("a-generator")
    tls = {"CERT_FILE": issued.cert, "KEY_FILE": issued.key, "CA_FILE": issued.ca}
    settings = {f"INFAAS_TLS__{name}": str(file) for name, file in tls.items()} | {variable: str(tmp_path / "missing")}
    assert start("generator", **settings).wait(60) == SETTINGS_EXIT
    said = next(workshop.state_dir.glob("generator-*.log")).read_text()
    assert "missing" in said
    assert "Traceback" not in said


async def test_killing_the_generator_in_the_middle_loses_one_recipe_and_no_child_survives(
    workshop: Any, start: Start, store: RedisStore
) -> None:
    order = workshop.order(profile_budget_s=0.8)
    await store.put(Kind.BUILD, order.id, encode(order))
    first = start("generator")

    async def has_result() -> bool:
        return "ort-fp32-t1" in await workshop.results_of(store, order)

    await workshop.until(has_result)
    child = await measuring(workshop, first)
    first.kill()
    first.wait()

    async def is_gone() -> bool:
        return not child.is_running() or child.status() == psutil.STATUS_ZOMBIE

    await workshop.until(is_gone)
    kept = await workshop.results_of(store, order)
    assert "*" not in kept
    start("generator")
    results = await workshop.finished(store, order)
    assert results["*"].outcome == "made"
    assert results["ort-fp32-t1"] == kept["ort-fp32-t1"]
    assert results["ort-int8-t1"].outcome == "made"
    records = (await store.list([Kind.RESULT])).records
    assert {record.version for record in records} == {1}  # one set: nothing was written twice


async def test_a_generator_killed_again_and_again_still_completes_the_build(
    workshop: Any, start: Start, store: RedisStore
) -> None:
    order = workshop.order(profile_budget_s=0.5)
    await store.put(Kind.BUILD, order.id, encode(order))
    for module in ("inspection", "make", "measure"):
        generator = start("generator")

        async def has_child(generator: Any = generator, module: str = module) -> Any:
            return child_of(generator, f"infaas_variant_generator.{module}") or "*" in await workshop.results_of(
                store, order
            )

        await workshop.until(has_child)
        generator.kill()
        generator.wait()
    start("generator")
    results = await workshop.finished(store, order)
    assert results["*"].outcome == "made"
    assert {record.version for record in (await store.list([Kind.RESULT])).records} == {1}


async def test_a_stopped_generator_ends_cleanly_and_leaves_the_build_to_the_next_at_once(
    workshop: Any, start: Start, store: RedisStore
) -> None:
    order = workshop.order(profile_budget_s=60.0, max_batch_size=4096)
    await store.put(Kind.BUILD, order.id, encode(order))
    generator = start("generator", INFAAS_GENERATOR__LEASE_TTL_S="600")
    child = await measuring(workshop, generator)
    generator.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(generator.wait, 20) == 0
    assert not child.is_running()
    assert not await store.holders()
    assert "*" not in await workshop.results_of(store, order)
    assert not work_left_by(generator.pid)


async def test_cores_are_leased_from_the_worker_of_this_machine(workshop: Any, start: Start, store: RedisStore) -> None:
    start("worker")

    async def has_worker() -> Any:
        records = (await store.list([Kind.WORKER])).records
        return any(b'"READY"' in record.value for record in records)

    await workshop.until(has_worker)
    order = workshop.order()
    await store.put(Kind.BUILD, order.id, encode(order))
    start("generator")
    results = await workshop.finished(store, order)
    made = results["ort-fp32-t1"]
    assert made.outcome == "made", made.reason
    assert "no worker of this machine" not in made.reason
    assert made.variant.profile.host == socket.gethostname()


async def test_an_idle_generator_has_loaded_neither_onnx_nor_numpy(
    workshop: Any, start: Start, store: RedisStore
) -> None:
    order = workshop.order()
    await store.put(Kind.BUILD, order.id, encode(order))
    generator = start("generator")
    await workshop.finished(store, order)
    maps = mapped_by(generator.pid)
    assert "onnxruntime" not in maps
    assert "onnx_cpp2py" not in maps
    assert "numpy" not in maps
