"""A brief batch that is over in one step and the same one on a thread: whoever sent it is told alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from infaas_worker.batches import Ran
from infaas_worker.decide.events import Queries
from infaas_worker.decide.serving import Serving
from infaas_worker.executors.base import BatchIn, BatchOut, Value, Whole
from infaas_worker.instances import Instances
from infaas_worker.loading import Loader, Opened

from infaas.domain.ids import InstanceId
from infaas.domain.lifecycle import InstanceState
from infaas.domain.query import Code
from infaas.domain.tensor import Datatype
from infaas.domain.variant import Variant
from infaas.errors import ModelError, UnavailableError
from infaas.testing.builders import a_variant
from infaas.testing.clock import ManualClock

I1 = InstanceId("i1")
WITHIN_S = 10.0


@dataclass
class Model:
    """Ends its runs as it is told, here or by a future."""

    is_here: bool
    fails: Exception | None = None
    max_in_flight: int = 1

    def is_brief(self, items: int) -> bool:
        return self.is_here

    def run(self, batch: BatchIn) -> BatchOut:
        if self.fails is not None:
            raise self.fails
        if batch.whole is None:  # the one that proves it
            return BatchOut(batch.input_names, batch.datatypes, [query.inputs for query in batch.queries], 0.25)
        return BatchOut.of_whole(batch.input_names, batch.datatypes, batch.whole, 0.25)

    def submit(self, batch: BatchIn) -> Future[BatchOut]:
        future: Future[BatchOut] = Future()
        try:
            future.set_result(self.run(batch))
        except Exception as error:
            future.set_exception(error)
        return future

    def memory_bytes(self) -> int:
        return 1

    def close(self) -> None:
        """Holds nothing."""


@dataclass
class Owner:
    id: str = "c1"
    heard: list[tuple[Any, ...]] = field(default_factory=list)

    def started(self, batch: int) -> None:
        """Not told of what is over in the same turn."""

    def ran(self, batch: int, ran: Ran) -> None:
        result = ran.result
        said = result.whole if isinstance(result, BatchOut) else (result.code, result.text)
        self.heard.append(("ran", batch, ran.queries, said, ran.cancelled, ran.staged_s, ran.run_s))

    def refused(self, batch: int, code: Code, text: str, was_running: bool, held_s: float) -> None:
        self.heard.append(("refused", batch, code, text, was_running, held_s))


async def lived(model: Model, fails: Exception | None) -> tuple[list[tuple[Any, ...]], Serving]:
    """What the owner of one batch hears, and what the worker is after it."""

    class Loads:
        async def open(self, variant: Variant, on_begin: Callable[[], None]) -> Opened:
            on_begin()
            return Opened(model, 0.1, True, 1)

    instances = Instances(
        Serving((0,), 2**30, probe_interval_s=60.0), cast(Loader, Loads()), ManualClock(), lambda: None
    )  # fmt: skip
    instances.load(I1, a_variant("v1", threads=1))
    owner = Owner()
    async with asyncio.timeout(WITHIN_S):
        while (one := instances.instance(I1)) is None or one.state is not InstanceState.READY:  # noqa: ASYNC110  (plain states)
            await asyncio.sleep(0)
        model.fails = fails
        whole = Whole((2,), (Value((2, 1), b"ab"),))
        batch = BatchIn.of_whole(("x",), (Datatype.UINT8,), whole)
        instances.submit(owner, 7, I1, batch, Queries((1,), (2,), (instances.now() + 5.0,)))
        while not owner.heard:  # noqa: ASYNC110
            await asyncio.sleep(0)
    found = instances.serving
    model.fails = None
    await instances.close()
    return owner.heard, found


@pytest.mark.parametrize(
    "fails",
    [None, ModelError("it raised"), UnavailableError("it died"), RuntimeError("a fault of the executor")],
    ids=["an answer", "the model raises", "the executor died", "the executor is broken"],
)
async def test_it_ends_as_on_a_thread(fails: Exception | None) -> None:
    here, there = await lived(Model(is_here=True), fails), await lived(Model(is_here=False), fails)
    assert here[0] == there[0]
    assert len(here[0]) == 1
    assert here[1].instances == there[1].instances
    assert (here[1].work, here[1].failure) == (there[1].work, there[1].failure)
    is_dead = isinstance(fails, UnavailableError | RuntimeError)
    assert (here[1].instances[I1].state is InstanceState.FAILED) == is_dead
