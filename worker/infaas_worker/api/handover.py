"""Between what a controller of this process gives and takes, and the worker's values: nothing is written or read."""

from __future__ import annotations

import math
from itertools import accumulate

from infaas.errors import InfaasError
from infaas.rpc.hop.columns import Column
from infaas.rpc.hop.frames import flat
from infaas.rpc.hop.given import GivenAnswer, GivenBatch
from infaas_worker.api.messages import misfit
from infaas_worker.batches import Ran
from infaas_worker.decide.events import Queries
from infaas_worker.executors.base import BatchIn, Value, Whole


def taken(batch: GivenBatch) -> tuple[Queries, BatchIn]:
    names, datatypes, tails = batch.inputs
    total = sum(batch.items)
    values = tuple([Value((total, *tail), data) for tail, data in zip(tails, batch.data, strict=True)])
    queries = Queries(batch.ids, batch.items, batch.deadlines)
    return queries, BatchIn.of_whole(names, datatypes, Whole(batch.items, values), batch.outputs)


def answer(number: int, queries: Queries, ran: Ran, others: int) -> GivenAnswer | None:
    """None unless it is plain: all of its queries ran, nobody has left, and their answers lie together."""
    result = ran.result
    if isinstance(result, InfaasError) or result.whole is None or ran.cancelled or len(ran.queries) != len(queries):
        return None
    values, items = result.whole.values, queries.items
    if result.whole.items != items or misfit(result, values, sum(items)):
        return None
    marks = [0, *accumulate(items)]
    columns: list[Column] = []
    for name, datatype, value in zip(result.output_names, result.datatypes, values, strict=True):
        tail = value.shape[1:]
        data, unit = memoryview(flat(value.data)), datatype.itemsize * math.prod(tail)
        columns.append(Column(name, datatype, data, items, tail, None, marks, unit))
    return GivenAnswer(number, queries.ids, tuple(columns), ran.staged_s, ran.run_s, ran.run_items, others)
