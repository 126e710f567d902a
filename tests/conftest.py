"""What tests of every component share: a real private Redis, a store in it, a real PostgreSQL, and a clock that stands
still."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from infaas.store.redis import RedisStore
from infaas.store.server import find_redis_server, redis_command, wait_until_serving
from infaas.testing.clock import ManualClock
from infaas.testing.postgresql import VARIABLE, PostgresServer, find_binaries

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from docker_engine import DockerEngine

settings.register_profile("quick", max_examples=50)
settings.register_profile("thorough", max_examples=300, deadline=None, derandomize=True)
settings.load_profile("quick")
"""What properties are tried on, where a test says nothing else. `--hypothesis-profile=thorough` is for `test-long`."""


class RedisServer:
    """A private server of a test's own; `url` stays the same over restarts, what it kept does only with its file."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.url = f"unix://{state_dir}/redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        binary = find_redis_server(os.environ)
        # What was written outlives the server without it, and on a busy disk a killed one waits for it before it dies.
        command = [*redis_command(binary, self.state_dir), "--appendfsync", "no", *options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """As a crash does: no farewell."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """Remove what a stopped server kept, so that it starts empty."""
        for path in sorted((self.state_dir / "redis").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server for the whole session, in a folder with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            # In a thread: the fixture may be asked for from inside a running event loop.
            with ThreadPoolExecutor(1) as pool:
                pool.submit(asyncio.run, wait_until_serving(server.url, 20.0)).result()
            yield server
        finally:
            server.kill()


@pytest.fixture
async def own_redis_server() -> AsyncIterator[RedisServer]:
    """A server that the test may kill, stop and empty."""
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            await wait_until_serving(server.url, 20.0)
            yield server
        finally:
            server.kill()


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Skips where there is none."""
    binaries = find_binaries(os.environ)
    if binaries is None:
        pytest.skip(f"no PostgreSQL server here: apt-get install postgresql, or name its bin folder in {VARIABLE}")
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    with tempfile.TemporaryDirectory(prefix="infaas-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(binaries, Path(folder))
        try:
            server.create()
            server.start()
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the whole session; every test makes databases of its own in it."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def own_postgres_server() -> Iterator[PostgresServer]:
    """A server that the test may kill and freeze."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerEngine]:
    """One for the whole session, with an image of this checkout; every test makes a network of its own in it."""
    pytest.importorskip("docker", reason="the extra `docker` is not installed")
    from docker_engine import running_docker_engine

    with running_docker_engine() as engine:
        yield engine


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind that a catalogue may be in."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/catalog.db"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.url(server.new_database())


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """Of the session's server; use a namespace of your own, or `redis_namespace`."""
    return redis_server.url


@pytest.fixture
def redis_namespace() -> str:
    """A namespace nobody else uses."""
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
async def redis_store(redis_url: str, redis_namespace: str) -> AsyncIterator[RedisStore]:
    """An empty store of the test's own."""
    store = RedisStore(redis_url, redis_namespace)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def manual_clock() -> ManualClock:
    return ManualClock()
