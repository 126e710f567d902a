"""What tests of a real worker process send it, and how they read what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from infaas.domain.cluster import WorkerRecord
from infaas.domain.tensor import Datatype, Tensor
from infaas.domain.variant import Variant
from infaas.rpc.codec import decode
from infaas.store.base import Kind
from infaas.store.redis import RedisStore
from infaas.testing import graphs
from infaas.testing.worker_driver import WAIT_S, BatchAnswer, WorkerProcess

SLOW = 2000
"""Rounds that take a few tenths of a second: long enough for messages to arrive while a batch runs."""
Start = Callable[..., WorkerProcess]
"""Keywords are the worker's settings."""


def x(*values: float) -> Tensor:
    array = np.repeat(np.array(values, np.float32)[:, None], 4, axis=1)
    return Tensor("x", Datatype.FP32, array.shape, array.tobytes())


def index(*values: int) -> Tensor:
    array = np.array(values, np.int64)[:, None]
    return Tensor("index", Datatype.INT64, array.shape, array.tobytes())


def column(done: BatchAnswer, query: int, output: int = 0) -> list[float]:
    value = done.queries[query].outputs[output]
    return np.frombuffer(value.data, np.float32).reshape(tuple(value.shape))[:, 0].tolist()


def published(worker: WorkerProcess, graph: graphs.Graph, name: str = "v1", **facts: Any) -> Variant:
    worker.repository.put_bytes(graph.data)
    return graph.variant(name, **facts)


async def in_store(url: str, holds: Callable[[WorkerRecord | None], bool]) -> WorkerRecord | None:
    """Poll the store until the worker's record is as wanted."""
    store = RedisStore(url)
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                record = await store.get(Kind.WORKER, "w1")
                value = decode(record.value, WorkerRecord) if record else None
                if holds(value):
                    return value
                await asyncio.sleep(0.05)
    finally:
        await store.close()
