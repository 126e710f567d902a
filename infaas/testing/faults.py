"""Faults that a cluster of real processes must bear, each with what it does and how it is undone.

Every fault is injected in the middle of a load and undone after a while; what the callers saw is told by their
`Outcome`. `benchmarks/faults.py` prints the table, `tests/fault/cluster` holds its promises.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from infaas.testing.cluster import Cluster, wait_for
from infaas.testing.load import OK, Load, Outcome, arrivals
from infaas.testing.upgrade import remembered

SLOW_S = 1.5
DISK_BYTES = 64 * 2**20
LATE_CODES = frozenset({"deadline-passed", "deadline-unreachable", "no-worker", "saturated"})
"""How queries may end while a part stands still that holds them."""
Inject = Callable[[Cluster], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    inject: Inject
    """Entered in the middle of the load, left `lasts_s` later."""
    lasts_s: float = 5.0
    needs_retry: bool = False
    """Callers must try once more on another controller to be served throughout."""
    may_fail: bool = False
    """Queries may end at their deadline: a part stood still that holds them."""
    is_isolated: bool = False
    """The model's instances must have processes of their own, and go on having them."""
    shows: str = ""
    """`store` or `catalogue`: what a controller must call lost or read-only meanwhile."""


@dataclass(frozen=True, slots=True)
class Result:
    fault: Fault
    outcome: Outcome
    began_s: float
    """When, in the load, the fault began."""
    whole_after_s: float
    """From the undoing until every controller said that all of its parts are there."""
    was_shown: bool
    """Whether a controller said so while the part was lost."""

    @property
    def served_after_s(self) -> float:
        """From the fault until the last query that failed was due; 0: none failed."""
        last = self.outcome.last_failure_s()
        return 0.0 if last is None else max(0.0, last - self.began_s)

    def broken(self) -> list[str]:
        """Every promise that was not kept, in words; empty: the fault was borne."""
        failed = dict(sorted(self.outcome.failed.items()))
        found = []
        if self.outcome.hung:
            found.append(f"{self.outcome.hung} callers waited more than a second past their deadline")
        if self.fault.may_fail:
            failed = {code: count for code, count in failed.items() if code not in LATE_CODES}
        found.extend(f"{count} queries ended as {code}" for code, count in failed.items())
        if not self.outcome.shots or self.outcome.shots[-1].code != OK:
            found.append("the last query was not answered")
        if self.fault.shows and not self.was_shown:
            found.append(f"no controller said that the {self.fault.shows} was away")
        return found


@contextmanager
def killed(cluster: Cluster, name: str) -> Iterator[None]:
    cluster.kill(name)
    try:
        yield
    finally:
        cluster.start(name)


@contextmanager
def instance_killed(cluster: Cluster) -> Iterator[None]:
    cluster.kill_isolated_instance()
    yield


@contextmanager
def stopped(cluster: Cluster, name: str) -> Iterator[None]:
    cluster.signal(name, signal.SIGSTOP)
    try:
        yield
    finally:
        cluster.signal(name, signal.SIGCONT)


@contextmanager
def redis_killed(cluster: Cluster, *, is_emptied: bool = False) -> Iterator[None]:
    cluster.kill_redis()
    try:
        yield
    finally:
        if is_emptied:
            cluster.empty_redis()
        cluster.start_redis()


@contextmanager
def redis_flushed(cluster: Cluster) -> Iterator[None]:
    cluster.redis(["FLUSHALL"])
    yield


@contextmanager
def redis_slow(cluster: Cluster) -> Iterator[None]:
    cluster.link.delay_s = SLOW_S
    try:
        yield
    finally:
        cluster.link.delay_s = 0.0


@contextmanager
def redis_stalled(cluster: Cluster) -> Iterator[None]:
    """It accepts connections and answers nothing."""
    pid = cluster.redis_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def redis_read_only(cluster: Cluster) -> Iterator[None]:
    """As a replica whose master is gone is."""
    cluster.redis(["CONFIG", "SET", "replica-serve-stale-data", "yes"], ["REPLICAOF", "127.0.0.1", "1"])
    try:
        yield
    finally:
        cluster.redis(["REPLICAOF", "NO", "ONE"])


@contextmanager
def redis_full(cluster: Cluster) -> Iterator[None]:
    cluster.redis(["CONFIG", "SET", "maxmemory", "1"])
    try:
        yield
    finally:
        cluster.redis(["CONFIG", "SET", "maxmemory", str(256 * 2**20)])


@contextmanager
def redis_locked_out(cluster: Cluster) -> Iterator[None]:
    """Its password was changed under us, and every connection cut."""
    cluster.redis(["CONFIG", "SET", "requirepass", "another"], ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
    friend = cluster.redis_url.replace("unix://", "unix://:another@")
    try:
        yield
    finally:
        cluster.redis(["CONFIG", "SET", "requirepass", ""], url=friend)


@contextmanager
def catalogue_locked(cluster: Cluster) -> Iterator[None]:
    """Another program holds SQLite's write lock, as a backup or somebody's shell may."""
    connection = sqlite3.connect(cluster.catalogue / "catalog.db", isolation_level=None, check_same_thread=False)
    try:
        wait_for(lambda: _takes_lock(connection), "the write lock")
        yield
    finally:
        connection.close()


def _takes_lock(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    return True


@contextmanager
def catalogue_full(cluster: Cluster) -> Iterator[None]:
    """Its file system has no room, nor has its log. Needs `small_disk`."""
    database = cluster.catalogue / "catalog.db"
    wait_for(lambda: _takes_log_in(database), "the catalogue to take its log in")
    filler = cluster.catalogue / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            for size in (2**16, 2**12, 1):
                while True:
                    file.write(b"\0" * size)
        except OSError:
            pass
        while _grows(file.fileno()):
            continue
    try:
        yield
    finally:
        filler.unlink()


def _takes_log_in(database: Path) -> bool:
    connection = sqlite3.connect(database)
    try:
        is_busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not is_busy
    finally:
        connection.close()


def _grows(descriptor: int) -> bool:
    try:
        return os.write(descriptor, b"\0" * 4096) > 0
    except OSError:
        return False


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of a few megabytes on `folder`; False when this user may not mount one."""
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "infaas-catalogue", str(folder)]
    is_mounted = subprocess.run(words, check=False, capture_output=True).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _of(inject: Callable[..., AbstractContextManager[None]], *words: str, **options: bool) -> Inject:
    return lambda cluster: inject(cluster, *words, **options)


WORKER_KILLED = Fault("worker killed, started 2 s later", _of(killed, "worker-1"), 2.0)
INSTANCE_KILLED = Fault("isolated instance killed", instance_killed, 2.0, is_isolated=True)
WORKER_STOPPED = Fault("worker stopped (SIGSTOP)", _of(stopped, "worker-1"), 8.0, may_fail=True)
CONTROLLER_KILLED = Fault("controller killed", _of(killed, "controller-1"), 3.0, needs_retry=True)
GENERATOR_KILLED = Fault("generator killed", _of(killed, "generator"), 2.0)
REDIS_KILLED = Fault("Redis killed", redis_killed, 30.0, shows="store")
REDIS_EMPTIED = Fault("Redis killed, comes back empty", _of(redis_killed, is_emptied=True), 8.0, shows="store")
REDIS_FLUSHED = Fault("Redis: FLUSHALL", redis_flushed, 5.0)
REDIS_SLOW = Fault("Redis slow: 3 s a round trip", redis_slow, 15.0, shows="store")
REDIS_STALLED = Fault("Redis stopped (SIGSTOP)", redis_stalled, 12.0, shows="store")
REDIS_READ_ONLY = Fault("Redis read-only", redis_read_only, 12.0, shows="store")
REDIS_FULL = Fault("Redis full", redis_full, 12.0, shows="store")
REDIS_LOCKED_OUT = Fault("Redis: password changed", redis_locked_out, 12.0, shows="store")
CATALOGUE_LOCKED = Fault("catalogue locked", catalogue_locked, 12.0, shows="catalogue")
CATALOGUE_FULL = Fault("catalogue: disk full", catalogue_full, 12.0, shows="catalogue")
FAULTS = (
    WORKER_KILLED, WORKER_STOPPED, CONTROLLER_KILLED, GENERATOR_KILLED, REDIS_KILLED, REDIS_EMPTIED, REDIS_FLUSHED,
    REDIS_SLOW, REDIS_STALLED, REDIS_READ_ONLY, REDIS_FULL, REDIS_LOCKED_OUT, CATALOGUE_LOCKED, CATALOGUE_FULL,
    INSTANCE_KILLED,
)  # fmt: skip


async def endure(
    cluster: Cluster,
    fault: Fault,
    queries: Sequence[bytes],
    *,
    rate: float,
    deadline_s: float,
    lead_s: float = 3.0,
    lasts_s: float | None = None,
    tail_s: float = 5.0,
    seed: int = 1,
) -> Result:
    """Load, inject, undo, and wait until the cluster says that it is whole; the load goes on for `tail_s` after."""
    lasts_s = fault.lasts_s if lasts_s is None else lasts_s
    urls = remembered(cluster)
    load = Load(urls, queries, deadline_s=deadline_s, is_spread=fault.needs_retry, has_retry=fault.needs_retry)
    schedule = list(arrivals(rate, lead_s + lasts_s + tail_s, seed))
    shooting = asyncio.create_task(load.run(schedule), name="load")
    await asyncio.sleep(lead_s)
    whole_after_s, was_shown = await asyncio.to_thread(_suffer, cluster, fault, lasts_s)
    return Result(fault, await shooting, lead_s, whole_after_s, was_shown)


def _suffer(cluster: Cluster, fault: Fault, lasts_s: float) -> tuple[float, bool]:
    was_shown = False
    until = time.monotonic() + lasts_s
    with fault.inject(cluster):
        while (left_s := until - time.monotonic()) > 0:
            system = cluster.system(1 if fault is CONTROLLER_KILLED else 0)
            if system is not None and fault.shows:
                part = system.store if fault.shows == "store" else system.catalogue
                was_shown = was_shown or part.state != "up"
            time.sleep(min(0.25, left_s))
    undone = time.monotonic()
    cluster.wait_whole()
    return time.monotonic() - undone, was_shown
