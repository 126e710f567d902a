"""A controller of several processes as whoever starts it sees it: real processes, no store and no worker to be had."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from infaas.up import health
from infaas.up.memory import pss_bytes
from infaas.up.record import Endpoints, read_endpoints

pytestmark = pytest.mark.long

PATIENCE_S = 60.0
Found = TypeVar("Found")


def wait_for(question: Callable[[], Found], what: str) -> Found:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := question()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)
    return found


class Master:
    """`infaas run controller`, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **settings: str) -> subprocess.Popen[bytes]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}
        told = {
            "state_dir": str(self.folder),
            "controller__processes": "2",
            "controller__http_port": "0",
            "controller__grpc_port": "0",
            "controller__metrics_port": "0",
            "store__redis_url": f"unix://{self.folder}/nobody.sock",
            **settings,
        }
        environ |= {f"INFAAS_{name.upper()}": value for name, value in told.items()}
        with (self.folder / "log").open("wb") as log:
            command = [sys.executable, "-m", "infaas.programs", "controller"]
            self.process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
        return self.process

    def said(self) -> str:
        return (self.folder / "log").read_text()

    def endpoints(self) -> Endpoints:
        return wait_for(lambda: read_endpoints(self.folder), f"somebody to listen:\n{self.said()}")

    def children(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children()


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    made = Master(tmp_path)
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()


def are_gone(processes: list[psutil.Process]) -> bool:
    return all(not one.is_running() or one.status() == psutil.STATUS_ZOMBIE for one in processes)


def processes_of(endpoints: Endpoints) -> list[dict[str, Any]]:
    found = health.parts(endpoints, None)
    return [] if found is None else list(found["processes"])


def test_a_port_that_is_taken_is_one_line_and_exit_status_two(master: Master) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        assert master.start(controller__http_port=str(port)).wait(PATIENCE_S) == 2
    assert f"cannot listen on 127.0.0.1:{port} (controller.http_port): Address already in use" in master.said()


def test_what_is_wrong_for_all_processes_ends_the_master_as_it_would_one_controller(master: Master) -> None:
    assert master.start(catalog__database_url="oracle://x").wait(PATIENCE_S) == 2
    assert "oracle" in master.said()
    assert "exit code 2 (wrong settings)" in master.said()


def test_of_processes_that_cannot_get_ready_one_says_why_and_all_end_when_asked(master: Master) -> None:
    process = master.start()
    endpoints = master.endpoints()
    assert endpoints.pid == process.pid, "the announcement is the whole controller's"
    status, body = wait_for(lambda: _answer(endpoints), "an answer")
    assert (status, json.loads(body)["code"]) == (503, "unavailable")
    states = wait_for(lambda: _two(processes_of(endpoints)), "both to have said something")
    assert sorted(one["state"] for one in states) == ["serving", "starting"]
    children = master.children()
    assert {one["pid"] for one in states} == {child.pid for child in children}
    assert (pss_bytes(process.pid) or 0) < 60 * 2**20, "the master imports nothing of what it starts"

    process.send_signal(signal.SIGTERM)

    assert process.wait(PATIENCE_S) == 0, master.said()
    assert are_gone(children)
    assert not (master.folder / "run" / "controller.json").exists()


def _answer(endpoints: Endpoints) -> tuple[int, bytes] | None:
    status, body = health.get(endpoints, "/v2/health/ready")
    return (status, body) if status else None


def _two(found: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    return found if len(found) == 2 else None


def test_a_process_that_dies_is_replaced_under_the_same_ports_and_the_reason_is_logged(master: Master) -> None:
    process = master.start()
    endpoints = master.endpoints()
    before = wait_for(lambda: _two(processes_of(endpoints)), "both processes")
    serving = next(one for one in before if one["state"] == "serving")

    os.kill(serving["pid"], signal.SIGKILL)

    def is_back() -> bool:
        now = processes_of(endpoints)
        return len(now) == 2 and all(one["pid"] != serving["pid"] for one in now)

    wait_for(is_back, f"both to be there again:\n{master.said()}")
    (back,) = (one for one in processes_of(endpoints) if one["number"] == serving["number"])
    assert (back["controller"], back["restarts"]) == (serving["controller"], 1)
    assert read_endpoints(master.folder) == endpoints
    assert "killed by SIGKILL" in master.said()
    assert process.poll() is None


def test_processes_do_not_outlive_a_killed_master(master: Master) -> None:
    process = master.start()
    master.endpoints()
    children = master.children()
    assert len(children) == 2

    process.kill()

    wait_for(lambda: are_gone(children), "the processes to end with it")
