"""Keeps the worker's record in the store while it lives: discovery for controllers, nothing that queries depend on.

Without the store the worker goes on serving; when the store is back, or was emptied, the record is written again
after a jittered wait, so that a fleet does not come back in one instant.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from infaas.domain.cluster import WorkerRecord
from infaas.errors import ConflictError, UnavailableError
from infaas.observe.log import get_logger
from infaas.rpc.codec import decode, encode
from infaas.store.base import Kind, MetadataStore
from infaas_worker.reports import Shape

_log = get_logger(__name__)
_MAX_WAIT_S = 5.0
_TTL_HEARTBEATS = 3


def retry_wait_s(failures: int, heartbeat_s: float, draw: float) -> float:
    """Doubles from one heartbeat to a limit; `draw` in [0, 1) takes up to half of it away."""
    return min(_MAX_WAIT_S, heartbeat_s * 2.0 ** (min(failures, 10) - 1)) * (1.0 - 0.5 * draw)


async def refuse_namesake(store: MetadataStore, record: WorkerRecord) -> None:
    """Raises ConflictError when a worker that lives elsewhere has this name: the two would take each other's place in
    every view. One that died is in the way until its record expires. Without the store nobody can know."""
    try:
        found = await store.get(Kind.WORKER, record.id)
    except UnavailableError as error:
        _log.warning("store unreachable; nobody knows whether the worker's name is free", reason=error.text)
        return
    if found is None:
        return
    other = decode(found.value, WorkerRecord)
    if (other.host, other.address) != (record.host, record.address):
        raise ConflictError(
            f"a worker {record.id!r} lives at {other.address} on {other.host} already: give the one in the "
            "controller's process another worker.id"
        )


class Registration:
    """`run` for as long as the worker lives, then `withdraw`."""

    def __init__(
        self,
        store: MetadataStore,
        record: Callable[[], WorkerRecord],
        shape: Callable[[], Shape],
        heartbeat_s: float,
    ) -> None:
        self._store = store
        self._record = record
        self._shape = shape
        self._heartbeat_s = heartbeat_s
        self._written: Shape | None = None
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something changed: write it now."""
        self._wake.set()

    async def run(self) -> None:
        failures = 0
        while True:
            try:
                await self._keep()
            except UnavailableError as error:
                failures += 1
                self._written = None
                if failures == 1:
                    _log.warning("store unreachable; serving goes on", reason=error.text)
                await self._wait(retry_wait_s(failures, self._heartbeat_s, random.random()))
            else:
                if failures:
                    _log.info("registered again", failures=failures)
                failures = 0
                await self._wait(self._heartbeat_s, is_woken=True)

    async def withdraw(self) -> None:
        """Take the record back; without a store it expires by itself."""
        try:
            await self._store.delete(Kind.WORKER, self._record().id)
        except UnavailableError as error:
            _log.warning("record not withdrawn; it expires", reason=error.text)

    async def _keep(self) -> None:
        record, shape = self._record(), self._shape()
        ttl_s = _TTL_HEARTBEATS * self._heartbeat_s
        if shape == self._written and await self._store.touch(Kind.WORKER, record.id, ttl_s=ttl_s):
            return
        await self._store.put(Kind.WORKER, record.id, encode(record), ttl_s=ttl_s)
        self._written = shape

    async def _wait(self, seconds: float, *, is_woken: bool = False) -> None:
        try:
            async with asyncio.timeout(seconds):
                await (self._wake.wait() if is_woken else asyncio.get_running_loop().create_future())
        except TimeoutError:
            return
        self._wake.clear()
