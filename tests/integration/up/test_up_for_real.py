"""The whole system, brought up by the command that users type: real Redis, real programs, real sockets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infaas.client import Client
from infaas.up.record import is_alive, is_up, read_endpoints, read_up

PATIENCE_S = 90.0
FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


def wait_until(question: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not question():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


class System:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}

    def infaas(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from infaas.cli import main; main()", *words, "--state-dir", str(self.folder)],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    made = System(tmp_path / "s")
    yield made
    record = read_up(made.folder) if made.folder.exists() else None
    if record is not None and is_up(record):
        os.kill(record.pid, signal.SIGKILL)


@pytest.mark.long
def test_up_status_second_up_worker_loss_and_down(system: System) -> None:
    up = system.infaas("up", "--detach", *FREE_PORTS)
    assert up.returncode == 0, up.stdout + up.stderr
    endpoints = read_endpoints(system.folder)
    assert endpoints is not None
    assert f"REST     {endpoints.url}" in up.stdout
    with Client(endpoints.url) as client:
        assert client.is_ready()
        assert [(one.id, one.is_connected) for one in client.workers()] == [("local-1", True)]

    status = system.infaas("status", "-o", "json")
    assert status.returncode == 0, status.stdout + status.stderr
    programs = {one["program"]: one for one in json.loads(status.stdout)["programs"]}
    assert {name: one["state"] for name, one in programs.items()} == dict.fromkeys(
        ("redis", "controller", "generator", "worker-local-1"), "running"
    )

    again = system.infaas("up", "--detach", *FREE_PORTS)
    assert again.returncode == 1
    assert f"infaas is already up in {system.folder}" in again.stderr

    os.kill(programs["worker-local-1"]["pid"], signal.SIGKILL)
    wait_until(lambda: any(p.restarts == 1 for p in read_up(system.folder).programs), "the worker's restart")
    with Client(endpoints.url) as client:
        wait_until(lambda: any(one.is_connected for one in client.workers()), "the worker to be back")

    before = read_up(system.folder)
    down = system.infaas("down")
    assert down.returncode == 0, down.stdout + down.stderr
    assert not is_up(before)
    assert not any(is_alive(program.pid, program.start_ticks) for program in before.programs)
    assert {(p.name, p.last_exit) for p in read_up(system.folder).programs} == {
        (name, "exit code 0") for name in ("redis", "controller", "generator", "worker-local-1")
    }


@pytest.mark.long
def test_when_the_supervisor_is_killed_the_whole_system_ends(system: System) -> None:
    up = system.infaas("up", "--detach", *FREE_PORTS)
    assert up.returncode == 0, up.stdout + up.stderr
    record = read_up(system.folder)

    os.kill(record.pid, signal.SIGKILL)

    wait_until(lambda: not any(is_alive(p.pid, p.start_ticks) for p in record.programs), "every program to end")
