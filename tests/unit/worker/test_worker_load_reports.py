"""What a worker tells its controllers, and in which order."""

from __future__ import annotations

import asyncio
import mmap
from typing import cast

from infaas_worker.api.publisher import Publisher
from infaas_worker.api.stream import ControllerStream
from infaas_worker.batches import Ran
from infaas_worker.decide.advance import advance
from infaas_worker.decide.events import Event, InstanceTold, LoadAsked, Queries, Run, Ticked
from infaas_worker.decide.instances import Loaded, WorkDone, WorkKind
from infaas_worker.decide.serving import Serving
from infaas_worker.executors.base import BatchOut, QueryError, Value, Whole
from infaas_worker.instances import Instances
from infaas_worker.monitor import Monitor
from infaas_worker.reports import Reporter

from infaas.domain.action import Autoscaling
from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.query import Code
from infaas.domain.tensor import Datatype
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.testing.builders import a_worker
from infaas.testing.clock import ManualClock
from infaas.testing.hop import Heard, connected

ONE = InstanceId("i1")


def a_serving_instance() -> tuple[Serving, float]:
    """Loaded and proved, a while ago."""
    serving, commands = Serving((0, 1), 2**30, probe_interval_s=5.0), ()
    now = 100.0
    events: list[Event] = [LoadAsked(ONE, VariantName("v"), 1, 100), InstanceTold(ONE, Loaded(0.1, True, 1, 100))]
    for event in events:
        serving, commands = advance(serving, event, now)
    warm_up = next(command for command in commands if isinstance(command, Run))
    serving, _ = advance(serving, InstanceTold(ONE, WorkDone(warm_up.key, WorkKind.WARM_UP, 0, 0.01)), now)
    return serving, now


def test_a_probe_that_runs_is_no_load_of_any_controller() -> None:
    serving, now = a_serving_instance()
    serving, commands = advance(serving, Ticked(), now + 6.0)
    assert [command.kind for command in commands if isinstance(command, Run)] == [WorkKind.PROBE]
    assert serving.instances[ONE].running, "the probe runs while the report is made"
    reporter = Reporter(a_worker("w1"), ManualClock(), Monitor(), lambda: Autoscaling(is_on=False))
    (load,) = reporter.report(serving).report.loads
    assert (load.running, load.staged) == (0, 0)


class Wire:
    """A stream whose messages go over a real connection to somebody who remembers them."""

    def __init__(self) -> None:
        self.heard = Heard()

    async def __aenter__(self) -> Wire:
        self.end, self.far = await connected(Heard(), self.heard)
        # What is tried here needs no instances.
        self.stream = ControllerStream("c1", self.end, cast(Instances, None), Publisher())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end.serve(Heard(), silence_s=20.0)
        for end in (self.end, self.far):
            end.cut("tried")
            await end.gone()

    async def told(self) -> list[pb.WorkerMessage]:
        """Everything that was said so far."""
        await self.stream.flushed()
        assert self.stream.has_flushed
        self.end.send(b"", [b"the last"])
        await self.heard.until(lambda: bool(self.heard.frames) and self.heard.frames[-1][1] == b"the last")
        return [pb.WorkerMessage.FromString(head) for head, _ in self.heard.frames[:-1]]


def report(sequence: int) -> pb.WorkerMessage:
    return pb.WorkerMessage(report=pb.WorkerReport(sequence=sequence))


async def test_outcomes_are_told_before_the_report_that_counts_them_as_done() -> None:
    async with Wire() as wire:
        stream = wire.stream
        stream.report(report(1))
        stream.started(7)
        stream.refused(7, Code.DRAINING, "draining", False, 0.0)
        stream.report(report(2))
        bodies = [message.WhichOneof("body") for message in await wire.told()]
        assert bodies == ["report", "started", "done", "report"]


async def test_a_controller_that_reads_slowly_gets_the_newest_report_and_every_outcome_and_is_not_read_meanwhile() -> (
    None
):
    async with Wire() as wire:
        stream, end = wire.stream, wire.end
        end.serve(stream, silence_s=20.0)
        wire.far.pause(True)
        large = BatchOut(("y",), (Datatype.UINT8,), ((Value((1, 8 * 2**20), bytes(8 * 2**20)),),), 0.01)
        stream._queries[1] = Queries.of((1, 1, 0.0))
        stream.ran(1, Ran((1,), large, frozenset(), 0.0, 0.01))
        async with asyncio.timeout(20):
            while not end.is_congested:  # noqa: ASYNC110  (the transport's own state)
                await asyncio.sleep(0)
        assert not end._transport.is_reading()  # type: ignore[union-attr]
        for sequence in range(1000):
            stream.report(report(sequence))
        before = end.unsent_bytes
        stream.refused(7, Code.DRAINING, "draining", False, 0.0)
        assert end.unsent_bytes - before < 1000
        assert not stream.has_flushed
        wire.far.pause(False)
        first, second, third = await wire.told()
        assert (first.done.id, second.done.id, third.report.sequence) == (1, 7, 999)
        assert end._transport.is_reading()  # type: ignore[union-attr]


async def test_outputs_beyond_what_a_message_holds_are_an_error_of_their_batch_and_the_stream_lives() -> None:
    async with Wire() as wire:
        stream = wire.stream
        stream._queries[7] = stream._queries[9] = Queries.of((1, 1, 0.0), (2, 1, 0.0))
        with mmap.mmap(-1, 400 * 2**20) as large:  # never touched, so it costs no memory
            whole = Whole((1, 1), (Value((2, 200 * 2**20), memoryview(large)),))
            result = BatchOut.of_whole(("y",), (Datatype.UINT8,), whole, 0.01)
            apart = BatchOut(("y",), (Datatype.UINT8,), whole.parts(), 0.01)
            for number, out in ((9, result), (7, apart)):
                ran = Ran((1, 2), out, frozenset(), 0.0, 0.01)
                assert ran.output_bytes == 400 * 2**20
                stream.ran(number, ran)
            for value in apart.queries:
                value[0].data.release()
            whole.values[0].data.release()
            del whole, result, apart, ran, out
        stream._queries[8] = Queries.of((3, 1, 0.0), (4, 1, 0.0))
        small = (Value((1, 3), b"abc"),)
        mixed = BatchOut(("y",), (Datatype.UINT8,), (small, QueryError(Code.INVALID, "no")), 0.01)
        stream.ran(8, Ran((3, 4), mixed, frozenset(), 0.0, 0.01))
        *refused, answered = (message.done for message in await wire.told())
        assert [done.id for done in refused] == [9, 7]
        for done in refused:
            assert (done.error_code, done.was_running) == (Code.TOO_LARGE.value, True)
            assert "419430400 bytes" in done.error
        assert (answered.id, answered.error_code) == (8, "")
        assert list(answered.queries) == [3]
        assert [(failure.id, failure.error_code) for failure in answered.failures] == [(4, Code.INVALID.value)]
        assert wire.heard.frames[2][1] == b"abc"
