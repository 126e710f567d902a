"""What a worker tells its controllers, and in which order."""

from __future__ import annotations

import asyncio
import mmap
from typing import Any, cast

from infaas_worker.api import grpc as service
from infaas_worker.batches import Ran
from infaas_worker.decide.advance import advance
from infaas_worker.decide.events import Event, InstanceTold, LoadAsked, Run, Ticked
from infaas_worker.decide.instances import Loaded, WorkDone, WorkKind
from infaas_worker.decide.serving import Serving
from infaas_worker.executors.base import BatchOut, QueryError, Value
from infaas_worker.instances import Instances
from infaas_worker.monitor import Monitor
from infaas_worker.reports import Reporter

from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.query import Code
from infaas.domain.tensor import Datatype
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.testing.builders import a_worker
from infaas.testing.clock import ManualClock

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
    reporter = Reporter(a_worker("w1"), ManualClock(), Monitor())
    (load,) = reporter.report(serving).report.loads
    assert (load.running, load.staged) == (0, 0)


class Sent:
    """Stands where the stream's transport does and keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[pb.WorkerMessage] = []

    async def write(self, message: pb.WorkerMessage) -> None:
        self.messages.append(message)


async def told(stream: service.ControllerStream) -> list[pb.WorkerMessage]:
    sent = Sent()
    writer = asyncio.create_task(stream.write_to(cast(Any, sent)), name="writer")
    await stream.flushed()
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    return sent.messages


def a_stream() -> service.ControllerStream:
    """What is tried here needs no instances."""
    return service.ControllerStream("c1", cast(Instances, None))


def report(sequence: int) -> pb.WorkerMessage:
    return pb.WorkerMessage(report=pb.WorkerReport(sequence=sequence))


async def test_outcomes_are_told_before_the_report_that_counts_them_as_done() -> None:
    stream = a_stream()
    stream.report(report(1))
    stream.started(7)
    stream.refused(7, Code.DRAINING, "draining", False, 0.0)
    stream.report(report(2))
    bodies = [message.WhichOneof("body") for message in await told(stream)]
    assert bodies == ["started", "done", "report"]


async def test_outputs_beyond_what_a_message_holds_are_an_error_of_their_batch_and_the_stream_lives() -> None:
    stream = a_stream()
    stream._queries[7] = (1, 2)
    with mmap.mmap(-1, 200 * 2**20) as large:  # never touched, so it costs no memory
        values = (Value((1,), memoryview(large)),)
        result = BatchOut(("y",), (Datatype.UINT8,), (values, values), 0.01)
        ran = Ran((1, 2), result, frozenset(), 0.0, 0.01)
        assert ran.output_bytes == 400 * 2**20
        stream.ran(7, ran)
        del values, result, ran
    stream._queries[8] = (3, 4)
    small = (Value((1,), b"abc"),)
    mixed = BatchOut(("y",), (Datatype.UINT8,), (small, QueryError(Code.INVALID, "no")), 0.01)
    stream.ran(8, Ran((3, 4), mixed, frozenset(), 0.0, 0.01))
    refused, answered = (message.done for message in await told(stream))
    assert (refused.id, refused.error_code, refused.was_running) == (7, Code.TOO_LARGE.value, True)
    assert "419430400 bytes" in refused.error
    assert (answered.id, answered.error_code) == (8, "")
    assert [query.error_code for query in answered.queries] == ["", Code.INVALID.value]
