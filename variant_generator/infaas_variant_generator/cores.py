"""Cores to measure on: leased, slice by slice, from the workers of this machine, or our own where there are none.

A worker lends cores by not starting work on them, so what is measured is not disturbed by queries, and a query waits
for one slice at most. Workers of the same machine are asked in the order of their names, which keeps two profilers
from waiting for each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infaas.clock import Clock
from infaas.domain.cluster import WorkerRecord
from infaas.domain.lifecycle import WorkerState
from infaas.errors import UnavailableError
from infaas.observe.log import get_logger
from infaas.rpc.codec import decode
from infaas.rpc.tls import Tls
from infaas.store.base import Kind, MetadataStore
from infaas.tokens import Tokens

_log = get_logger(__name__)
VIEW_TTL_S = 2.0
LEASE_WAIT_S = 60.0
OWN_CORES = "measured on cores that no worker of this machine lent"


@dataclass(frozen=True, slots=True)
class Loan:
    cores: tuple[int, ...]
    note: str | None = None


class CoreBroker:
    """One loan at a time. Channels stay open between slices; `close` ends them."""

    def __init__(
        self,
        store: MetadataStore,
        host: str,
        own: Sequence[int],
        clock: Clock,
        holder: str,
        tokens: Tokens | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._store = store
        self._host = host
        self._own = tuple(sorted(own))
        self._clock = clock
        self._holder = holder
        self._tokens = Tokens.of(None) if tokens is None else tokens
        self._tls = tls
        self._calls: list[Any] = []
        self._channels: dict[str, Any] = {}
        self._workers: tuple[WorkerRecord, ...] = ()
        self._seen_at = float("-inf")
        self._turn = 0

    async def workers(self) -> tuple[WorkerRecord, ...]:
        """The serving workers of this machine, by name; at most two seconds old. The last known ones while the store
        is away."""
        if self._clock.now() - self._seen_at < VIEW_TTL_S:
            return self._workers
        try:
            snapshot = await self._store.list([Kind.WORKER])
        except UnavailableError as error:
            _log.debug("workers not listed", reason=error.text)
            return self._workers
        records = (decode(record.value, WorkerRecord) for record in snapshot.records)
        local = (w for w in records if w.host == self._host and w.state is WorkerState.READY)
        self._workers = tuple(sorted(local, key=lambda worker: worker.id))
        self._seen_at = self._clock.now()
        return self._workers

    async def take(self, count: int, max_s: float) -> Loan:
        """Wait until that many cores are lent, and hold them until `give`."""
        lent: tuple[int, ...] = ()
        is_lent = False
        for worker in await self.workers():
            cores = await self._lease(worker, count, max_s)
            if cores is None:
                continue
            is_lent = True
            lent = lent or tuple(sorted(set(cores) & set(self._own)))
        if is_lent:
            return Loan(lent or self._own)
        return Loan(self._own_cores(count), OWN_CORES)

    async def give(self) -> None:
        calls, self._calls = self._calls, []
        for call in calls:
            call.cancel()

    async def close(self) -> None:
        await self.give()
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    def _own_cores(self, count: int) -> tuple[int, ...]:
        """Another part of our cores each time, so that a busy neighbour on one of them does not decide the result."""
        start = (self._turn * count) % len(self._own)
        self._turn += 1
        return tuple(sorted({self._own[(start + offset) % len(self._own)] for offset in range(count)}))

    async def _lease(self, worker: WorkerRecord, count: int, max_s: float) -> tuple[int, ...] | None:
        """The core ids one worker lends; None when it cannot be asked."""
        import grpc  # here, because an idle generator never needs it

        from infaas.rpc.channel import open_channel
        from infaas.rpc.v1 import worker_pb2, worker_pb2_grpc

        if worker.address not in self._channels:
            self._channels[worker.address] = open_channel(worker.address, self._tls)
        stub = worker_pb2_grpc.WorkerServiceStub(self._channels[worker.address])
        request = worker_pb2.LeaseCoresRequest(holder=self._holder, cores=min(count, worker.cores), max_s=max_s)
        call = stub.LeaseCores(request, metadata=self._tokens.metadata())
        self._calls.append(call)
        try:
            async with asyncio.timeout(LEASE_WAIT_S):
                lease = await call.read()
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            call.cancel()
            _log.warning("worker lends no cores", worker=worker.id, reason=f"{type(error).__name__}: {error}")
            return None
        if lease is grpc.aio.EOF:
            return None
        return tuple(int(core) for core in lease.core_ids)
