"""A real engine that speaks Docker's API, with an image of this checkout, for tests of what makes containers."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

sys.path.insert(0, str(Path(__file__).parent / "e2e"))

from container_engine import DEPLOY, ROOT, Engine, find_engine, obtain_base_image

PATIENCE_S = 60.0
DOCKER_SOCKET = "/var/run/docker.sock"


@dataclass(frozen=True)
class DockerEngine:
    """`socket`: of the API; `image`: what `deploy/Dockerfile` makes of this checkout."""

    engine: Engine
    socket: Path
    image: str

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def inspected(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.engine.run("inspect", container))[0]
        return found


class Network:
    """Of a test's own. Nothing that joined it is left in the end."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine.engine
        self.name = f"infaas-test-{secrets.token_hex(4)}"
        self._engine.run("network", "create", self.name)

    @property
    def gateway(self) -> str:
        """The engine's machine, as containers see it."""
        (found,) = json.loads(self._engine.run("network", "inspect", self.name))
        subnets = found.get("subnets") or found["IPAM"]["Config"]
        gateway: str = subnets[0].get("gateway") or subnets[0]["Gateway"]
        return gateway

    def containers(self, *flags: str) -> list[str]:
        """Names, of those that run; with `-a` of all."""
        return self._engine.run("ps", *flags, "--filter", f"network={self.name}", "--format", "{{.Names}}").split()

    def logs(self) -> str:
        said = []
        for name in self.containers("-a"):
            done = subprocess.run(
                [self._engine.name, "logs", name],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60,
            )
            said.append(f"--- {name}\n{done.stdout}")
        return "\n".join(said)

    def remove(self) -> None:
        for name in self.containers("-a"):
            self._engine.run("rm", "-f", name)
        self._engine.run("network", "rm", self.name)


@contextmanager
def running_docker_engine() -> Iterator[DockerEngine]:
    """Skips, with the reason, where there is none, or nothing to build the image on."""
    engine = find_engine()
    if isinstance(engine, str):
        pytest.skip(engine)
    reason = obtain_base_image(engine)
    if reason is not None:
        pytest.skip(reason)
    image = f"localhost/infaas-test-{secrets.token_hex(4)}:latest"
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder, _api(engine, Path(folder)) as socket:
        engine.build(image, DEPLOY / "Dockerfile", ROOT)
        try:
            yield DockerEngine(engine, socket, image)
        finally:
            engine.run("rmi", "-f", image)


@contextmanager
def _api(engine: Engine, folder: Path) -> Iterator[Path]:
    """Docker's is there; podman's is started for us."""
    if engine.name != "podman":
        yield Path(os.environ.get("DOCKER_HOST", DOCKER_SOCKET).removeprefix("unix://"))
        return
    with podman_service(folder / "engine.sock"):
        yield folder / "engine.sock"


@contextmanager
def podman_service(socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Docker's API in front of podman; the containers do without it."""
    service = subprocess.Popen(
        ["podman", "system", "service", "--time=0", f"unix://{socket}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _answers(socket):
            assert time.monotonic() < deadline, "podman's service does not answer"
            assert service.poll() is None, f"podman's service ended with {service.returncode}"
            time.sleep(0.05)
        yield service
    finally:
        service.kill()
        service.wait()


def _answers(socket: Path) -> bool:
    if not socket.exists():
        return False
    try:
        client = docker.APIClient(f"unix://{socket}", timeout=PATIENCE_S)
    except docker.errors.DockerException:
        return False
    client.close()
    return True
