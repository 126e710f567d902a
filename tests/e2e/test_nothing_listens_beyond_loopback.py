"""Where the programs listen when nobody told them where: on this machine only, each of them and what they start."""

from __future__ import annotations

import ipaddress
import socket
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from running_system import INFAAS, SIMPLE_MODEL, System, running, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
ONE = np.ones((1, 16), np.int32)


def listeners(processes: Sequence[psutil.Process]) -> set[str]:
    """The addresses of every listening or bound internet socket that these processes have."""
    found = set()
    for process in processes:
        for one in process.net_connections("inet"):
            if one.status == psutil.CONN_LISTEN or (one.type == socket.SOCK_DGRAM and not one.raddr):
                ip = ipaddress.ip_address(one.laddr.ip)
                found.add(str(getattr(ip, "ipv4_mapped", None) or ip))  # gRPC's sockets are of both families
    return found


def is_its_users_alone(folder: Path) -> bool:
    """Whether no other user gets at what lies in it."""
    return not stat.S_IMODE(folder.stat().st_mode) & 0o077


def test_a_system_listens_on_loopback_and_its_sockets_are_its_users_alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings = {"INFAAS_GENERATOR__MAX_BATCH_SIZE": "4", "INFAAS_GENERATOR__PROFILE_BUDGET_S": "0.05"}
    with running(tmp_path_factory.mktemp("e2e") / "state", settings, "--processes", "2") as system:
        system.register_simple("--isolation", "process")
        with system.client() as client:
            client.infer(SIMPLE_MODEL, {"INPUT0": ONE, "INPUT1": ONE})
        processes = system.processes()
        assert len(processes) >= 7, "supervisor, store, controller and its processes, generator, worker, instance"
        assert listeners(processes) == {"127.0.0.1"}
        sockets = [path for path in system.folder.rglob("*") if path.is_socket()]
        assert len(sockets) >= 3, "the store's, the worker's two"
        assert is_its_users_alone(system.folder)


@pytest.fixture
def part(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """One program by itself, as `infaas run` starts it: with default settings, but for ports that may be taken here."""
    system = System(tmp_path)
    ports = {f"INFAAS_CONTROLLER__{name}_PORT": "0" for name in ("HTTP", "GRPC", "METRICS")}
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([INFAAS, "run", request.param], env={**system.environ, **ports}, stderr=file)
    try:
        yield process, log
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize(
    ("part", "ready", "listens"),
    [
        ("controller", "controller listens", {"127.0.0.1"}),
        ("worker", "worker ready", set()),
        ("generator", "generator", set()),
    ],
    indirect=["part"],
)
def test_a_part_by_itself_listens_on_loopback_or_not_at_all(
    part: tuple[subprocess.Popen[bytes], Path], ready: str, listens: set[str]
) -> None:
    process, log = part
    wait_for(lambda: ready in log.read_text(), f"{ready!r} in its log")
    own = psutil.Process(process.pid)
    assert listeners([own, *own.children(recursive=True)]) == listens
