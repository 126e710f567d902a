"""Between the wire's messages and the worker's values. Tensor bytes pass through untouched, beside the messages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from infaas.domain.query import HARD_LIMIT_S, Code
from infaas.domain.tensor import Datatype
from infaas.errors import InfaasError, InvalidError
from infaas.rpc.hop.columns import ColumnsError, read_columns, write_column
from infaas.rpc.hop.frames import Buffer, flat
from infaas.rpc.v1 import worker_pb2
from infaas_worker.batches import Ran
from infaas_worker.decide.events import Queries
from infaas_worker.executors.base import BatchIn, BatchOut, QueryError, QueryIn, Value, Whole


def to_queries(batch: worker_pb2.Batch, now: float) -> Queries:
    """Each with its own deadline, else the hard limit. Raises InvalidError when the numbers contradict each other."""
    ids, items, left_us = tuple(batch.queries[:]), tuple(batch.items[:]), batch.remaining_us[:]  # each read in one go
    count = len(items)
    if len(ids) != count or len(left_us) not in (0, count):
        raise InvalidError(f"{len(ids)} queries come with {count} numbers of items and {len(left_us)} deadlines")
    if len(set(ids)) != count:
        raise InvalidError("the batch names a query twice")
    for trace in batch.traces:
        if trace.place >= count:
            raise InvalidError(f"a trace is of query {trace.place} of {count}")
    deadlines = [now + (us / 1e6 if us else HARD_LIMIT_S) for us in left_us or [0] * count]
    return Queries(ids, items, tuple(deadlines))


def to_batch(batch: worker_pb2.Batch, items: tuple[int, ...], payload: memoryview) -> BatchIn:
    """The tensors of queries of so many items each. Raises InvalidError when the message contradicts the bytes that
    came with it, and for a datatype that is not OIP's."""
    try:
        columns = read_columns(batch.inputs, items, batch.sizes, payload)
    except ColumnsError as error:
        raise InvalidError(f"what is said of the batch's inputs does not fit them: {error}") from error
    names = tuple([column.name for column in columns])
    datatypes = tuple([column.datatype for column in columns])
    outputs = tuple(batch.outputs)
    if all(column.is_even for column in columns):
        whole = Whole(items, tuple([Value(column.shape, column.data) for column in columns]))
        return BatchIn.of_whole(names, datatypes, whole, outputs)
    queries = [
        QueryIn(count, tuple([Value(*column.part(place)) for column in columns])) for place, count in enumerate(items)
    ]
    return BatchIn(names, datatypes, queries, outputs)


def started(number: int, others: int = 0) -> worker_pb2.WorkerMessage:
    return worker_pb2.WorkerMessage(started=worker_pb2.BatchStarted(id=number, others=others))


def refused(
    number: int, code: Code, text: str, was_running: bool, held_s: float, others: int = 0
) -> worker_pb2.WorkerMessage:
    done = worker_pb2.BatchDone(
        id=number,
        error_code=code.value,
        error=text,
        was_running=was_running,
        staged_s=0.0 if was_running else held_s,
        others=others,
    )
    return worker_pb2.WorkerMessage(done=done)


def ran(number: int, queries: Queries, ran: Ran, others: int = 0) -> tuple[worker_pb2.WorkerMessage, list[Buffer]]:
    """The message, and the bytes of the outputs that it names. `queries` are all of the batch, in the order they came,
    also those that did not run; `others` is what its instance holds of other controllers."""
    message = worker_pb2.WorkerMessage()
    done = message.done
    done.id = number
    done.others = others
    done.was_running = True
    done.staged_s = ran.staged_s
    done.run_s = ran.run_s
    done.run_items = ran.run_items
    try:
        return message, _add_outputs(done, queries, ran)
    except InfaasError as error:
        done.error_code = error.code.value
        done.error = error.text
        return message, []


def _add_outputs(done: worker_pb2.BatchDone, queries: Queries, ran: Ran) -> list[Buffer]:
    """Raises what the batch ended with, before anything is added."""
    result = ran.result
    if isinstance(result, InfaasError):
        raise result
    if len(result.queries) != len(ran.queries):
        raise InfaasError(f"the executor gave {len(result.queries)} answers to {len(ran.queries)} queries")
    if result.whole is not None and ran.cancelled.isdisjoint(ran.queries):
        return _add_whole(done, queries, ran, result, result.whole.values)
    return _add_parts(done, queries, ran, result)


def _add_whole(
    done: worker_pb2.BatchDone, queries: Queries, ran: Ran, result: BatchOut, values: Sequence[Value]
) -> list[Buffer]:
    """Everybody who ran has an answer, and the answers lie together as they are sent."""
    left_out = set(queries.ids).difference(ran.queries) if len(ran.queries) < len(queries) else ()
    there = queries.but(left_out) if left_out else queries
    if problem := misfit(result, values, sum(there.items)):
        raise InfaasError(problem)
    done.queries.extend(there.ids)
    done.items.extend(there.items)
    for name, datatype, value in zip(result.output_names, result.datatypes, values, strict=True):
        done.outputs.add(name=name, datatype=datatype.value, tail=value.shape[1:])
    if left_out:
        for number in queries.ids:
            if number in left_out:
                _add_unanswered(done, number, is_cancelled=number in ran.cancelled)
    return [flat(value.data) for value in values]


def _add_parts(done: worker_pb2.BatchDone, queries: Queries, ran: Ran, result: BatchOut) -> list[Buffer]:
    outcomes = dict(zip(ran.queries, result.queries, strict=True))
    answered: list[tuple[Value, ...]] = []
    items: list[int] = []
    for number, count in zip(queries.ids, queries.items, strict=True):
        is_cancelled = number in ran.cancelled
        outcome = None if is_cancelled else outcomes.get(number)
        if outcome is None:
            _add_unanswered(done, number, is_cancelled=is_cancelled)
        elif isinstance(outcome, QueryError):
            done.failures.add(id=number, error_code=outcome.code.value, error=outcome.text)
        elif problem := misfit(result, outcome):
            done.failures.add(id=number, error_code=Code.INTERNAL.value, error=problem)
        else:
            done.queries.append(number)
            items.append(count)
            answered.append(outcome)
    done.items.extend(items)
    segments: list[Buffer] = []
    for place, (name, datatype) in enumerate(zip(result.output_names, result.datatypes, strict=True)):
        parts = [(outcome[place].shape, outcome[place].data) for outcome in answered]
        segments += write_column(done.outputs, done.sizes, name, datatype, items, parts)
    return segments


def _add_unanswered(done: worker_pb2.BatchDone, number: int, *, is_cancelled: bool) -> None:
    if is_cancelled:
        code, text = Code.CANCELLED, "taken back by its controller"
    else:
        code, text = Code.DEADLINE_PASSED, "the deadline passed before the batch began to run"
    done.failures.add(id=number, error_code=code.value, error=text)


def misfit(result: BatchOut, values: Sequence[Value], rows: int | None = None) -> str:
    """What is wrong with an executor's values, which its controller would take for a broken connection; empty: nothing.
    `rows`: what the first dimension must be, where it must."""
    if len(values) != len(result.output_names):
        return f"the executor gave {len(values)} values for {len(result.output_names)} outputs"
    for name, datatype, value in zip(result.output_names, result.datatypes, values, strict=True):
        size, want = memoryview(value.data).nbytes, math.prod(value.shape) * datatype.itemsize
        if datatype is not Datatype.BYTES and size != want:
            return f"output {name!r} came with {size} bytes; shape {list(value.shape)} of {datatype.value} takes {want}"
        if rows is not None and value.shape[:1] != (rows,):
            return f"output {name!r} came in shape {list(value.shape)} for {rows} items"
    return ""
