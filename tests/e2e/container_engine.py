"""A compose cluster in whichever real container engine this machine has: podman with podman-compose, or Docker."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE_FILES = (DEPLOY / "docker-compose.yml", DEPLOY / "docker-compose.debian.yml")
BUILD_ARGS = "INFAAS_TEST_BUILD_ARGS"
"""More words for every `build`, where the network or its certificates need them."""
ENGINE = "INFAAS_TEST_ENGINE"
"""`podman` or `docker`; empty: the first that works."""
HOST_CERTIFICATES = Path("/etc/ssl/certs")
PROJECT_LABEL = "com.docker.compose.project"
BUILD_S = 1200.0
COMMAND_S = 300.0
DEBIAN = ("redis", "postgres", "haproxy", "prometheus")
"""Images that the override file makes from Debian's packages."""
SECRETS = ("token", "prometheus", "cluster", "redis", "postgres")


class EngineError(Exception):
    """A command of the engine failed, with what it said."""


@dataclass(frozen=True, slots=True)
class Engine:
    name: str
    compose: tuple[str, ...]

    def run(self, *words: str | Path, environ: Mapping[str, str] | None = None, timeout_s: float = COMMAND_S) -> str:
        return _run((self.name, *words), environ, timeout_s)

    def has_image(self, image: str) -> bool:
        return _is_good((self.name, "image", "inspect", image))

    def build(self, image: str, file: Path, context: Path, *, has_certificates: bool = True) -> None:
        """`has_certificates`: the host's are mounted over the image's, for downloads that its network signs anew."""
        arguments = self._build_args(has_certificates)
        self.run("build", *arguments, "-t", image, "-f", file, context, timeout_s=BUILD_S)

    def state(self, container: str) -> dict[str, Any]:
        """What the engine knows of a container."""
        found: dict[str, Any] = json.loads(self.run("inspect", container))[0]
        return found

    def image_bytes(self, image: str) -> int:
        return int(json.loads(self.run("image", "inspect", image))[0]["Size"])

    def labelled(self, what: Sequence[str], project: str, *filters: str) -> list[str]:
        """Ids or names of a project's containers, volumes or networks."""
        wanted = [word for one in (f"label={PROJECT_LABEL}={project}", *filters) for word in ("--filter", one)]
        return self.run(*what, *wanted).split()

    def _build_args(self, has_certificates: bool) -> list[str]:
        given = os.environ.get(BUILD_ARGS)
        if given is not None:
            return shlex.split(given)
        is_mounted = has_certificates and HOST_CERTIFICATES.is_dir() and self.name == "podman"
        mount = ["-v", f"{HOST_CERTIFICATES}:{HOST_CERTIFICATES}:ro"]
        return ["--network=host", *(mount if is_mounted else [])]


class Cluster:
    """One project of the compose files. `down` leaves no container, volume, network or image of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.project = f"infaas-test-{secrets.token_hex(4)}"
        self.image = f"localhost/{self.project}:latest"
        self.debian_images = {name: f"localhost/{self.project}-{name}:latest" for name in DEBIAN}
        self.http_port, self.grpc_port, self.prometheus_port = _free_ports(3)
        self._folder = tempfile.TemporaryDirectory(prefix=f"{self.project}-")
        _run(("sh", DEPLOY / "make-secrets.sh", self._folder.name), None, COMMAND_S)
        self.secrets = {name: (Path(self._folder.name) / name).read_text() for name in SECRETS}

    @property
    def token(self) -> str:
        return self.secrets["token"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def prometheus_url(self) -> str:
        return f"http://127.0.0.1:{self.prometheus_port}"

    def build(self) -> None:
        self.engine.build(self.image, DEPLOY / "Dockerfile", ROOT)
        folder = DEPLOY / "debian"
        for name, image in self.debian_images.items():
            self.engine.build(image, folder / f"Dockerfile.{name}", folder, has_certificates=False)

    def up(self, *services: str) -> None:
        """These services, or all."""
        self._compose("up", "-d", *services)

    def remove(self) -> None:
        """All containers and networks, and every volume with what it holds. The images stay."""
        try:
            self._compose("down", "-v")
        finally:
            for container in self.engine.labelled(("ps", "-aq"), self.project):
                self.engine.run("rm", "-f", container)
            for kind in ("volume", "network"):
                for name in self.engine.labelled((kind, "ls", "--format", "{{.Name}}"), self.project):
                    self.engine.run(kind, "rm", name)

    def down(self) -> None:
        """By the compose command, and then whatever it left."""
        try:
            self.remove()
        finally:
            for image in (self.image, *self.debian_images.values()):
                if self.engine.has_image(image):
                    self.engine.run("rmi", "-f", image)
            self._folder.cleanup()

    def kill(self, service: str) -> int:
        """As a crash does: the first process of the container gets SIGKILL, and the engine was not asked to stop it.
        Its process id. Skips the test where the engine's processes are not ours to signal."""
        pid = int(self.engine.state(self.container(service))["State"]["Pid"])
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            pytest.skip(f"process {pid} of {service} is another user's: only root can kill it")
        except ProcessLookupError:
            pytest.skip(f"process {pid} of {service} is not of this machine (the engine runs in another one)")
        return pid

    def is_restarted(self, service: str, killed: int) -> bool:
        """Whether the engine has started the container again, by its restart policy."""
        state = self.engine.state(self.container(service))["State"]
        return bool(state["Status"] == "running" and state["Pid"] not in (0, killed))

    def cut_off(self, service: str) -> None:
        """The container goes on without a network; whoever is connected to it hears nothing any more."""
        self.engine.run("network", "disconnect", self._network(), self.container(service))

    def join(self, service: str) -> None:
        self.engine.run("network", "connect", "--alias", service, self._network(), self.container(service))

    def execute(self, service: str, *command: str, timeout_s: float = COMMAND_S) -> str:
        """What a command printed inside of the container."""
        return self.engine.run("exec", self.container(service), *command, timeout_s=timeout_s)

    def said(self, service: str) -> str:
        """All that the container ever logged, and all that the engine tells of it."""
        container = self.container(service)
        return self.logs(service, 1_000_000) + self.engine.run("inspect", container) + self.engine.run("top", container)

    def _network(self) -> str:
        (found,) = self.engine.labelled(("network", "ls", "--format", "{{.Name}}"), self.project)
        return found

    def container(self, service: str) -> str:
        (found,) = self.engine.labelled(("ps", "-aq"), self.project, f"label=com.docker.compose.service={service}")
        return found

    def is_healthy(self, service: str) -> bool:
        """The service's own health check. Podman without systemd runs none by itself, so there it is run now."""
        container = self.container(service)
        if self.engine.name == "podman":
            return _is_good(("podman", "healthcheck", "run", container))
        state: dict[str, Any] = json.loads(self.engine.run("inspect", container))[0]["State"]
        return bool(state["Health"]["Status"] == "healthy")

    def logs(self, service: str, lines: int = 15) -> str:
        done = subprocess.run(
            [self.engine.name, "logs", "--tail", str(lines), self.container(service)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S,
        )
        return done.stdout

    def _compose(self, *words: str) -> None:
        files = [word for file in COMPOSE_FILES for word in ("-f", str(file))]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}
        environ |= {
            "INFAAS_SECRETS": self._folder.name,
            "INFAAS_IMAGE": self.image,
            "INFAAS_REDIS_IMAGE": self.debian_images["redis"],
            "INFAAS_POSTGRES_IMAGE": self.debian_images["postgres"],
            "INFAAS_PROXY_IMAGE": self.debian_images["haproxy"],
            "INFAAS_PROMETHEUS_IMAGE": self.debian_images["prometheus"],
            "INFAAS_HTTP_PORT": str(self.http_port),
            "INFAAS_GRPC_PORT": str(self.grpc_port),
            "INFAAS_PROMETHEUS_PORT": str(self.prometheus_port),
        }
        _run((*self.engine.compose, "-p", self.project, *files, *words), environ, COMMAND_S)


def find_engine() -> Engine | str:
    """An engine that works here, or why there is none."""
    wanted = os.environ.get(ENGINE)
    reasons = []
    for name in (wanted,) if wanted else ("podman", "docker"):
        found = _try_engine(name)
        if isinstance(found, Engine):
            return found
        reasons.append(found)
    return "no container engine: " + "; ".join(reasons)


def obtain_base_image(engine: Engine) -> str | None:
    """None when the image that ours are built on is there now, else why not."""
    bases = set(re.findall(r"^FROM (\S+/\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    for base in sorted(bases):
        if engine.has_image(base):
            continue
        try:
            engine.run("pull", base)
        except (EngineError, subprocess.TimeoutExpired) as error:
            return f"base image {base} is not here and cannot be pulled: {str(error).strip().splitlines()[-1]}"
    return None


def _try_engine(name: str) -> Engine | str:
    if shutil.which(name) is None:
        return f"no {name} on PATH"
    if not _is_good((name, "info")):
        return f"`{name} info` fails"
    for compose in ((f"{name}-compose",), (name, "compose")):
        if shutil.which(compose[0]) and _is_good((*compose, "version")):
            return Engine(name, compose)
    return f"{name} has no compose command"


def _free_ports(count: int) -> list[int]:
    """Free a moment ago, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _is_good(command: Sequence[str]) -> bool:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=COMMAND_S)
    return done.returncode == 0


def _run(command: Sequence[str | Path], environ: Mapping[str, str] | None, timeout_s: float) -> str:
    """What it printed. Raises EngineError with the end of what it said."""
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-3000:]
        raise EngineError(f"{' '.join(str(word) for word in command)} ended with {done.returncode}:\n{said}")
    return done.stdout
