"""What a container's health check asks: does the program with these settings serve on this machine?"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from infaas.errors import SettingsError, UnavailableError
from infaas.rpc.tls import TlsFiles
from infaas.settings import Settings, load_settings
from infaas.testing.certificates import Authority
from infaas.up import pulse
from infaas.up.probe import GENERATOR, certified_name, check_controller, check_generator, check_worker, dialled


def worker_settings(listen: str | None) -> Settings:
    return load_settings(environ={}, overrides={"worker": {"listen": listen}})


class Listener:
    """Health checks on a free port, answered as the worker's own servicer does."""

    def __init__(self, files: TlsFiles | None = None) -> None:
        self.servicer = health.HealthServicer()
        self.server = grpc.server(ThreadPoolExecutor(1))
        health_pb2_grpc.add_HealthServicer_to_server(self.servicer, self.server)
        if files is None:
            self.port = self.server.add_insecure_port("127.0.0.1:0")
        else:
            pair, ca = (files.key.read_bytes(), files.cert.read_bytes()), files.ca.read_bytes()
            credentials = grpc.ssl_server_credentials([pair], ca, require_client_auth=True)
            self.port = self.server.add_secure_port("127.0.0.1:0", credentials)
        self.server.start()


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.server.stop(None).wait()


@pytest.mark.parametrize(
    ("listen", "dial"),
    [
        ("0.0.0.0:9000", "127.0.0.1:9000"),
        ("[::]:9000", "[::1]:9000"),
        (":9000", "localhost:9000"),
        ("10.0.0.1:9000", "10.0.0.1:9000"),
        ("unix:/run/worker.sock", "unix:/run/worker.sock"),
    ],
)
def test_a_listener_everywhere_is_called_on_loopback(listen: str, dial: str) -> None:
    assert dialled(listen) == dial


def test_a_worker_is_healthy_while_it_serves_and_not_while_it_drains(listener: Listener) -> None:
    settings = worker_settings(f"0.0.0.0:{listener.port}")
    assert check_worker(settings) == f"127.0.0.1:{listener.port}"
    listener.servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    with pytest.raises(UnavailableError, match="does not serve"):
        check_worker(settings)


@pytest.mark.parametrize(
    ("advertise", "resolved", "name"),
    [
        (None, "10.89.0.7", "0.0.0.0"),
        ("worker-1:9000", "10.89.0.7", "worker-1"),
        ("auto:9000", "10.89.0.7", "10.89.0.7"),
        ("auto:9000", "fd00::7", "fd00::7"),
        ("[fd00::8]:9000", "10.89.0.7", "fd00::8"),
    ],
)
def test_a_workers_certificate_is_asked_for_the_host_that_it_advertises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, advertise: str | None, resolved: str, name: str
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(None, None, 0, "", (resolved, 0))])
    files = Authority(tmp_path / "ca").issue(name)
    tls = {"cert_file": str(files.cert), "key_file": str(files.key), "ca_file": str(files.ca)}
    told = {"worker": {"listen": "0.0.0.0:9000", "advertise": advertise}, "tls": tls}
    assert certified_name(load_settings(environ={}, overrides=told), "0.0.0.0:9000") == name
    one_name = {**told, "tls": {**tls, "peer_name": "infaas-worker"}}
    assert certified_name(load_settings(environ={}, overrides=one_name), "0.0.0.0:9000") is None

    secured = Listener(files)
    try:
        told["worker"]["listen"] = f"127.0.0.1:{secured.port}"
        if advertise is not None:
            assert check_worker(load_settings(environ={}, overrides=told)) == f"127.0.0.1:{secured.port}"
    finally:
        secured.server.stop(None).wait()


def test_a_worker_that_is_not_there_is_not_healthy(listener: Listener) -> None:
    listener.server.stop(None).wait()
    with pytest.raises(UnavailableError, match="does not answer"):
        check_worker(worker_settings(f"127.0.0.1:{listener.port}"), timeout_s=0.5)


def test_a_worker_without_an_address_of_its_own_cannot_be_checked() -> None:
    with pytest.raises(SettingsError, match=r"worker\.listen, which is not set"):
        check_worker(worker_settings(None))


async def test_a_generator_is_healthy_while_it_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(environ={}, overrides={"state_dir": str(tmp_path)})
    with pytest.raises(UnavailableError, match="no generator lives"):
        check_generator(settings)
    heart = pulse.Heart(tmp_path, GENERATOR)
    await heart.beat()
    assert check_generator(settings) == os.getpid()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + pulse.LOST_AFTER_S + 5.0)
    with pytest.raises(UnavailableError, match="no sign of life for 20 s"):
        check_generator(settings)
    heart.stop()
    with pytest.raises(UnavailableError, match="no generator lives"):
        check_generator(settings)


def test_the_sign_of_life_of_a_killed_generator_is_none(tmp_path: Path) -> None:
    script = (
        "import asyncio, pathlib, sys; from infaas.up import pulse; "
        "asyncio.run(pulse.Heart(pathlib.Path(sys.argv[1]), 'generator').beat())"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True)
    assert (tmp_path / "run" / "generator.pulse.json").exists()
    with pytest.raises(UnavailableError, match="no generator lives"):
        check_generator(load_settings(environ={}, overrides={"state_dir": str(tmp_path)}))


def test_a_controller_that_never_listened_is_not_healthy(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no controller has announced itself"):
        check_controller(load_settings(environ={}, overrides={"state_dir": str(tmp_path)}))


def test_the_command_exits_by_the_answer(listener: Listener, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}
    environ |= {"INFAAS_WORKER__LISTEN": f"0.0.0.0:{listener.port}", "INFAAS_STATE_DIR": str(tmp_path)}

    def infaas(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from infaas.cli import main; main()", *words]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)

    worker = infaas("run", "worker", "--check")
    assert (worker.returncode, worker.stdout) == (0, f"The worker serves at 127.0.0.1:{listener.port}.\n")
    controller = infaas("run", "controller", "--check")
    assert controller.returncode == 1
    assert "no controller has announced itself" in controller.stderr
