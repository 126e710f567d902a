"""Between the wire's messages and the worker's values. Tensor bytes pass through untouched."""

from __future__ import annotations

from collections.abc import Sequence

from infaas.domain.query import HARD_LIMIT_S, Code
from infaas.domain.tensor import Datatype
from infaas.errors import InfaasError, InvalidError
from infaas.rpc.v1 import worker_pb2
from infaas_worker.batches import Ran
from infaas_worker.decide.events import StagedQuery
from infaas_worker.executors.base import BatchIn, QueryError, QueryIn, Value


def to_batch(batch: worker_pb2.Batch) -> BatchIn:
    """Raises InvalidError for a datatype that is not OIP's or a query whose inputs are not those of the batch."""
    names = tuple(batch.input_names)
    try:
        datatypes = tuple(Datatype(word) for word in batch.input_datatypes)
    except ValueError as error:
        raise InvalidError(f"datatype unknown: {error}") from error
    if len(datatypes) != len(names):
        raise InvalidError(f"{len(names)} input names come with {len(datatypes)} datatypes")
    queries = tuple(
        QueryIn(query.items, tuple(Value(tuple(value.shape), value.data) for value in query.inputs))
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


def ran(number: int, queries: Sequence[int], ran: Ran) -> worker_pb2.WorkerMessage:
    """`queries` are all of the batch, in the order they came, also those that did not run."""
    done = worker_pb2.BatchDone(id=number, was_running=True, staged_s=ran.staged_s, run_s=ran.run_s)
    if isinstance(ran.result, InfaasError):
        done.error_code = ran.result.code.value
        done.error = ran.result.text
        return worker_pb2.WorkerMessage(done=done)
    done.output_names.extend(ran.result.output_names)
    done.output_datatypes.extend(datatype.value for datatype in ran.result.datatypes)
    outcomes = dict(zip(ran.queries, ran.result.queries, strict=True))
    for query in queries:
        _add(done, query, None if query in ran.cancelled else outcomes.get(query), query in ran.cancelled)
    return worker_pb2.WorkerMessage(done=done)


def _add(
    done: worker_pb2.BatchDone, query: int, outcome: tuple[Value, ...] | QueryError | None, is_cancelled: bool
) -> None:
    answer = done.queries.add(id=query)
    if isinstance(outcome, QueryError):
        answer.error_code, answer.error = outcome.code.value, outcome.text
    elif outcome is not None:
        for value in outcome:
            answer.outputs.add(shape=value.shape, data=bytes(value.data))
    elif is_cancelled:
        answer.error_code, answer.error = Code.CANCELLED.value, "taken back by its controller"
    else:
        answer.error_code = Code.DEADLINE_PASSED.value
        answer.error = "the deadline passed before the batch began to run"
