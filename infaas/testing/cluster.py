"""A whole cluster of real processes on one machine: several controllers and workers, a generator, a Redis of its own.

What `infaas up` keeps hidden is in the open here: each program has a folder of its own and can be killed, stopped and
started by name, the store is reached through a link that can be made slow, and the catalogue may be any database. Tests
and `benchmarks/faults.py` share it. Every process dies with the one that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

from infaas.client import Client
from infaas.control import SystemDocument
from infaas.demo import family
from infaas.domain.variant import Variant
from infaas.errors import InfaasError, UnavailableError
from infaas.rpc.codec import decode
from infaas.store.base import Kind
from infaas.store.redis import RedisStore
from infaas.store.server import find_redis_server, redis_command, wait_until_serving
from infaas.testing.previous import python_path
from infaas.testing.slow_link import SlowLink
from infaas.up.tether import GUARDIAN_PID, SUPERVISOR_PID

TASK = "digits"
ISOLATED_PROGRAM = "infaas_worker.executors"
"""Part of the command line of an instance with a process of its own."""
PATIENCE_S = 90.0
_LOOK_EVERY_S = 0.05
_PORTS = ("http_port", "grpc_port", "metrics_port")
Found = TypeVar("Found")


def wait_for(question: Callable[[], Found], what: str, patience_s: float = PATIENCE_S) -> Found:
    """The first answer that is true. Raises TimeoutError."""
    deadline = time.monotonic() + patience_s
    while not (found := question()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {patience_s:.0f} s in vain for {what}")
        time.sleep(_LOOK_EVERY_S)
    return found


class Cluster:
    """`folder` must have a path short enough for sockets. Use `running`."""

    def __init__(
        self,
        folder: Path,
        *,
        controllers: int = 1,
        workers: int = 2,
        database_url: str | None = None,
        settings: Mapping[str, str] | None = None,
        fleet_workers: int = 0,
        has_worker_links: bool = False,
    ) -> None:
        """`fleet_workers`: as many as the fleet is to make of itself. `has_worker_links`: controllers reach each worker
        through a link that can be cut (`worker_links`), and without shared memory."""
        self.folder = folder
        self.fleet_workers = fleet_workers
        self.names = [
            *(f"controller-{n}" for n in range(1, controllers + 1)),
            *(f"worker-{n}" for n in range(1, workers + 1)),
            "generator",
        ]
        # A process is told to end when the thread that started it ends, so one thread starts them all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="starter")
        self._redis: subprocess.Popen[bytes] | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, dict[str, int]] = {}
        """A controller that is started again is where it was, as callers expect."""
        self.sources: dict[str, Path] = {}
        """Programs that are started from other code than this, by name (`previous`)."""
        (folder / "redis").mkdir()
        self.redis_url = f"unix://{folder}/redis/redis.sock"
        self.link = SlowLink(folder / "redis" / "redis.sock", folder / "link.sock")
        self.worker_links = {
            name: SlowLink(folder / f"{name}.sock", folder / f"{name}.link")
            for name in (self.workers if has_worker_links else ())
        }
        self.catalogue = folder / "catalogue"
        self.catalogue.mkdir()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}
        self._environ = {
            **clean,
            SUPERVISOR_PID: str(os.getpid()),
            "INFAAS_STORE__REDIS_URL": f"unix://{folder}/link.sock",
            "INFAAS_CATALOG__DATABASE_URL": database_url or f"sqlite:///{self.catalogue}/catalog.db",
            "INFAAS_REPOSITORY__URL": str(folder / "artifacts"),
            "INFAAS_GENERATOR__PROFILE_BUDGET_S": "0.3",
            "INFAAS_CONTROLLER__JOURNAL_SAMPLE": "0.1",
            "INFAAS_LOG__FORMAT": "json",
            **(settings or {}),
        }

    @contextmanager
    def running(self) -> Iterator[Cluster]:
        """Up and ready; whatever happens, no process is left."""
        try:
            for link in self._links():
                link.start()
            self.start_redis()
            for name in self.names:
                self.start(name)
            self.wait_whole()
            yield self
        finally:
            for name in list(self._processes):
                self.kill(name)
            self.kill_redis()
            for link in self._links():
                link.stop()
            self._starter.shutdown()

    def _links(self) -> list[SlowLink]:
        return [self.link, *self.worker_links.values()]

    # Programs

    def start(self, name: str) -> None:
        self._starter.submit(self._start, name).result()

    def _start(self, name: str) -> None:
        program, _, number = name.partition("-")
        folder = self.folder / name
        (folder / "run").mkdir(parents=True, exist_ok=True)
        told = {"INFAAS_STATE_DIR": str(folder)}
        if program == "controller":
            ports = self._ports.get(name, {})
            told |= {f"INFAAS_CONTROLLER__{port.upper()}": str(ports.get(port, 0)) for port in _PORTS}
            (folder / "run" / "controller.json").unlink(missing_ok=True)
        elif program == "worker":
            told |= {
                "INFAAS_WORKER__ID": f"local-{number}",
                "INFAAS_WORKER__CORES": "1",
                "INFAAS_WORKER__MEMORY_BYTES": str(2**29),
            }
            if name in self.worker_links:
                told |= {
                    "INFAAS_WORKER__LISTEN": f"unix:{self.folder}/{name}.sock",
                    "INFAAS_WORKER__ADVERTISE": f"unix:{self.folder}/{name}.link",
                }
        source = self.sources.get(name)
        if source is None:
            told[GUARDIAN_PID] = str(os.getpid())  # what a fleet makes outlives its controller, and not us
        else:
            told["PYTHONPATH"] = python_path(source)
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "infaas.programs", program],
                # Python imports from the current folder first.
                env={**self._environ, **told}, stdout=log, stderr=log, cwd=source,
            )  # fmt: skip

    def kill(self, name: str) -> None:
        """As a crash does. Idempotent."""
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()

    def stop(self, name: str, patience_s: float = PATIENCE_S) -> None:
        """As an operator does: SIGTERM, and it drains. Raises TimeoutError where it does not end."""
        process = self._processes[name]
        process.terminate()
        try:
            status = process.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{name} did not end within {patience_s:.0f} s of SIGTERM\n{self._tails()}") from None
        del self._processes[name]
        if status:
            raise RuntimeError(f"{name} ended with {status}\n{self.log(name)[-3000:]}")

    def signal(self, name: str, number: signal.Signals) -> None:
        self._processes[name].send_signal(number)

    def has_ended(self, name: str) -> bool:
        return self._processes[name].poll() is not None

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    # The store

    def start_redis(self) -> None:
        words = redis_command(find_redis_server(os.environ), self.folder / "redis")
        with (self.folder / "redis.log").open("ab") as log:
            self._redis = subprocess.Popen(words, stdout=log, stderr=log)
        asyncio.run(wait_until_serving(self.redis_url, PATIENCE_S))

    def kill_redis(self) -> None:
        """As a crash does. Idempotent."""
        if self._redis is not None:
            self._redis.kill()
            self._redis.wait()
            self._redis = None

    def empty_redis(self) -> None:
        """What a stopped server kept is gone."""
        kept = self.folder / "redis" / "redis"
        for path in sorted(kept.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    @property
    def redis_pid(self) -> int:
        assert self._redis is not None
        return self._redis.pid

    def redis(self, *commands: Sequence[str | int], url: str | None = None) -> list[object]:
        """Run commands on the server itself, past the link, on one connection."""

        async def work() -> list[object]:
            store = RedisStore(url or self.redis_url)
            try:
                async with store._redis.client() as client:
                    return [await client.execute_command(*command) for command in commands]  # type: ignore[no-untyped-call]
            finally:
                await store.close()

        return asyncio.run(work())

    # Controllers

    @property
    def controllers(self) -> list[str]:
        return [name for name in self.names if name.startswith("controller")]

    @property
    def workers(self) -> list[str]:
        return [name for name in self.names if name.startswith("worker")]

    def urls(self) -> list[str]:
        """Of the controllers that have said where they listen, in order of their names."""
        found = []
        for name in self.controllers:
            with contextlib.suppress(UnavailableError):
                found.append(self.url(name))
        return found

    def url(self, controller: str) -> str:
        """Raises UnavailableError while it has not said where it listens."""
        return self._announced(controller, "http_port")

    def metrics_url(self, controller: str) -> str:
        """As `url`, of its metrics port."""
        return self._announced(controller, "metrics_port")

    def _announced(self, name: str, port: str) -> str:
        try:
            said = json.loads((self.folder / name / "run" / "controller.json").read_text())
        except FileNotFoundError:
            raise UnavailableError(f"{name} has not said where it listens") from None
        self._ports[name] = {each: said[each] for each in _PORTS}
        return f"http://127.0.0.1:{said[port]}"

    def client(self, controller: int = 0) -> Client:
        """Of that one, whoever else is there. Raises UnavailableError as `url` does."""
        return Client(self.url(self.controllers[controller]), timeout_s=PATIENCE_S)

    def system(self, controller: int = 0) -> SystemDocument | None:
        """What a controller says of its parts; None when it does not answer."""
        try:
            with self.client(controller) as client:
                return client.system()
        except InfaasError:
            return None

    def is_whole(self) -> bool:
        """Every controller answers, sees all workers, and has all its parts."""
        found = [self.system(n) for n in range(len(self.controllers))]
        known = [one for one in found if one is not None]
        return (
            len(known) == len(self.controllers)
            and any(one.is_leader for one in known)
            and all(
                one.is_ready
                and one.store.state == one.catalogue.state == "up"
                and one.workers_connected == len(self.workers) + self.fleet_workers
                for one in known
            )
        )

    def wait_whole(self, patience_s: float = PATIENCE_S) -> None:
        try:
            wait_for(self.is_whole, "the cluster to be whole", patience_s)
        except TimeoutError as error:
            states = [self.system(n) for n in range(len(self.controllers))]
            raise TimeoutError(f"{error}: {states}\n{self._tails()}") from None

    def _tails(self) -> str:
        """What every program logged last."""
        return "\n".join(f"-- {name}\n{self.log(name)[-3000:]}" for name in self.names)

    def places(self, isolation: str | None = None) -> dict[str, set[str]]:
        """Where each variant is READY, as the first controller sees it; of that isolation only, if one is given."""
        found: dict[str, set[str]] = {}
        with self.client() as client:
            for worker in client.workers():
                for one in worker.instances:
                    there = found.setdefault(one.variant, set())
                    if worker.is_connected and one.state == "READY" and isolation in (None, one.isolation):
                        there.add(worker.id)
        return found

    def wait_spread(self, variants: Collection[str], workers: int, isolation: str | None = None) -> None:
        """Until each of `variants` is READY on so many workers. Needs `controller.min_replicas`."""

        places: dict[str, set[str]] = {}

        def is_spread() -> bool:
            nonlocal places
            places = self.places(isolation)
            return all(len(places.get(variant, ())) >= workers for variant in variants)

        try:
            wait_for(is_spread, f"{sorted(variants)} to be on {workers} workers")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; all there is: {places}\n{self._tails()}") from None

    def isolate(self, model: str, isolation: str) -> None:
        """Say how a model's instances are to be isolated, and begin with empty workers."""
        with self.client() as client:
            names = [variant.name for variant in client.variants(model=model)]
            for variant in names:
                client.isolate_variant(variant, isolation)
        wait_for(lambda: self.published_isolation(names) == {isolation}, "the store to say so")
        for name in self.workers:
            self.kill(name)
        wait_for(lambda: self.connected() == 0, "the controllers to miss the workers")
        for name in self.workers:
            self.start(name)
        self.wait_whole()

    def published_isolation(self, variants: Collection[str]) -> set[str]:
        """What the store says of these: what controllers load from now on. The catalogue may be ahead of it."""

        async def work() -> set[str]:
            store = RedisStore(self.redis_url)
            try:
                records = (await store.list((Kind.VARIANT,))).records
            finally:
                await store.close()
            found = (decode(record.value, Variant) for record in records if record.key in variants)
            return {variant.isolation.value for variant in found}

        return asyncio.run(work())

    def connected(self) -> int:
        """Workers that some controller has a stream to; -1 while one of them does not answer."""
        found = [self.system(n) for n in range(len(self.controllers))]
        return max(-1 if one is None else one.workers_connected for one in found)

    def kill_isolated_instance(self) -> None:
        """As a crash of a model does: the process of one instance, of the first worker that has such."""
        for name in self.workers:
            for child in psutil.Process(self._processes[name].pid).children():
                if ISOLATED_PROGRAM in " ".join(child.cmdline()):
                    child.kill()
                    return
        raise RuntimeError("no instance has a process of its own")

    def register(self, name: str) -> None:
        """A member of the demo's family; returns once all of its variants are there and it serves everywhere."""
        model = next(one for one in family.FAMILY if one.name == name)
        with self.client() as client:
            client.register(
                family.path(model.file),
                task=TASK,
                name=model.name,
                evaluation=family.path(family.EVAL_FILE),
                renames=model.renames,
            )
        self.wait_serving(name)

    def wait_serving(self, name: str) -> None:
        """Until every controller gives queries to its first version."""

        def is_serving() -> bool:
            with self.client() as client:
                state = client.version(name, 1).state
                if state == "FAILED":
                    raise RuntimeError(client.version(name, 1).reason)
            return state == "READY" and all(self._served(name, n) == 1 for n in range(len(self.controllers)))

        wait_for(is_serving, f"{name} to serve", 3 * PATIENCE_S)

    def _served(self, name: str, controller: int) -> int | None:
        with self.client(controller) as client:
            return client.model(name).serves
