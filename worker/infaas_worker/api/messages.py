"""Between the wire's messages and the worker's values. Tensor bytes pass through untouched, beside the messages."""

from __future__ import annotations

from collections.abc import Sequence

from infaas.domain.query import HARD_LIMIT_S, Code
from infaas.domain.tensor import Datatype
from infaas.errors import InfaasError, InvalidError
from infaas.rpc.hop.frames import Buffer, cut, flat
from infaas.rpc.v1 import worker_pb2
from infaas_worker.batches import Ran
from infaas_worker.decide.events import StagedQuery
from infaas_worker.executors.base import BatchIn, QueryError, QueryIn, Value


def to_batch(batch: worker_pb2.Batch, payload: memoryview) -> BatchIn:
    """Raises FrameError when the tensors do not fill the payload, InvalidError for a datatype that is not OIP's or a
    query whose inputs are not those of the batch."""
    values = iter(cut(payload, [value.size for query in batch.queries for value in query.inputs]))
    names = tuple(batch.input_names)
    try:
        datatypes = tuple(Datatype(word) for word in batch.input_datatypes)
    except ValueError as error:
        raise InvalidError(f"datatype unknown: {error}") from error
    if len(datatypes) != len(names):
        raise InvalidError(f"{len(names)} input names come with {len(datatypes)} datatypes")
    queries = tuple(
        QueryIn(query.items, tuple(Value(tuple(value.shape), next(values)) for value in query.inputs))
        for query in batch.queries
    )
    for query in queries:
        if len(query.inputs) != len(names):
            raise InvalidError(f"a query has {len(query.inputs)} inputs, the batch names {len(names)}")
    return BatchIn(names, datatypes, queries, tuple(batch.outputs))


def to_queries(batch: worker_pb2.Batch, now: float) -> tuple[StagedQuery, ...]:
    """Each with its own deadline, else the batch's, else the hard limit."""
    whole_s = batch.remaining_us / 1e6 if batch.remaining_us else HARD_LIMIT_S
    return tuple(
        StagedQuery(query.id, query.items, now + (query.remaining_us / 1e6 if query.remaining_us else whole_s))
        for query in batch.queries
    )


def started(number: int) -> worker_pb2.WorkerMessage:
    return worker_pb2.WorkerMessage(started=worker_pb2.BatchStarted(id=number))


def refused(number: int, code: Code, text: str, was_running: bool, held_s: float) -> worker_pb2.WorkerMessage:
    done = worker_pb2.BatchDone(
        id=number, error_code=code.value, error=text, was_running=was_running, staged_s=0.0 if was_running else held_s
    )
    return worker_pb2.WorkerMessage(done=done)


def ran(number: int, queries: Sequence[int], ran: Ran) -> tuple[worker_pb2.WorkerMessage, list[Buffer]]:
    """The message, and the bytes of the outputs that it names. `queries` are all of the batch, in the order they came,
    also those that did not run."""
    segments: list[Buffer] = []
    done = worker_pb2.BatchDone(id=number, was_running=True, staged_s=ran.staged_s, run_s=ran.run_s)
    if isinstance(ran.result, InfaasError):
        done.error_code = ran.result.code.value
        done.error = ran.result.text
        return worker_pb2.WorkerMessage(done=done), segments
    done.output_names.extend(ran.result.output_names)
    done.output_datatypes.extend(datatype.value for datatype in ran.result.datatypes)
    outcomes = dict(zip(ran.queries, ran.result.queries, strict=True))
    for query in queries:
        is_cancelled = query in ran.cancelled
        _add(done, segments, query, None if is_cancelled else outcomes.get(query), is_cancelled)
    return worker_pb2.WorkerMessage(done=done), segments


def _add(
    done: worker_pb2.BatchDone,
    segments: list[Buffer],
    query: int,
    outcome: tuple[Value, ...] | QueryError | None,
    is_cancelled: bool,
) -> None:
    answer = done.queries.add(id=query)
    if isinstance(outcome, QueryError):
        answer.error_code, answer.error = outcome.code.value, outcome.text
    elif outcome is not None:
        for value in outcome:
            data = flat(value.data)
            answer.outputs.add(shape=value.shape, size=len(data))
            segments.append(data)
    elif is_cancelled:
        answer.error_code, answer.error = Code.CANCELLED.value, "taken back by its controller"
    else:
        answer.error_code = Code.DEADLINE_PASSED.value
        answer.error = "the deadline passed before the batch began to run"
