"""What a controller's link tells, remembered; and links whose end is seen to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from infaas_controller.commands import BatchResult
from infaas_controller.link import Link, LinkTerms, ViewSource
from structlog.testing import capture_logs

from infaas.clock import SystemClock
from infaas.domain.cluster import WorkerRecord
from infaas.domain.ids import VariantName, WorkerId
from infaas.rpc.hop.inner import Meet
from infaas.rpc.tls import Tls
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.tokens import Tokens

WITHIN_S = 20.0


class Told:
    """The view and the sink of a link, which remember."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self._news = asyncio.Event()

    async def until(self, what: str) -> None:
        async with asyncio.timeout(WITHIN_S):
            while what not in self.said:
                self._news.clear()
                await self._news.wait()

    @property
    def of_note(self) -> list[str]:
        """Without the loads, which come each second."""
        return [one for one in self.said if not one.startswith("loads")]

    def worker_reported(self, record: WorkerRecord) -> None:
        self._say(f"reported {record.id}")

    def worker_stream_lost(self, worker_id: WorkerId) -> None:
        self._say(f"stream lost {worker_id}")

    def worker_connected(self, record: WorkerRecord) -> None:
        self._say(f"connected {record.id}")

    def worker_lost(self, worker: WorkerId) -> None:
        self._say(f"lost {worker}")

    def batch_started(self, batch: int, others: int) -> None:
        self._say(f"started {batch}")

    def batch_done(self, batch: int, result: BatchResult) -> None:
        outputs = (result.tensors(number) for number in result.outputs or {})
        self._say(f"done {batch} {[bytes(tensor.data) for found in outputs for tensor in found]}")

    def loads_reported(self, loads: Sequence[pb.InstanceLoad]) -> None:
        self._say(f"loads {len(loads)}")

    def exchange_reported(self, worker: WorkerId, given_up: frozenset[VariantName] | None) -> None:
        self._say(f"given up {None if given_up is None else sorted(given_up)}")

    def _say(self, what: str) -> None:
        self.said.append(what)
        self._news.set()


Lines = Sequence[Mapping[str, Any]]


@asynccontextmanager
async def linked(
    told: Told,
    address: str,
    *,
    token: str = "",
    lost_after_s: float = 5.0,
    inner: Mapping[str, Meet] | None = None,
    tls: Tls | None = None,
) -> AsyncIterator[tuple[Link, Lines]]:
    """A link to w1, and what is logged of it."""
    terms = LinkTerms(
        cast(ViewSource, told),
        told,
        SystemClock(),
        "c1",
        Tokens.of(token or None),
        lambda: 0.5,
        lost_after_s,
        inner or {},
        tls=tls,
    )
    with capture_logs() as lines:
        link = Link(terms, WorkerId("w1"), address)
        try:
            yield link, lines
        finally:
            await link.close()


async def reason_in(lines: Lines) -> str:
    """Why there was no link, or it ended, the first time."""
    async with asyncio.timeout(WITHIN_S):
        while not (found := [line for line in lines if line["event"] == "no link to the worker"]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return str(found[0]["reason"])
