"""What a worker says of a batch that it is done with, read no further than somebody still waits for."""

from __future__ import annotations

from collections.abc import Sequence

from infaas.domain.tensor import Datatype, Tensor
from infaas.rpc.v1 import worker_pb2 as pb
from infaas_controller.commands import BatchResult


class Outputs:
    """One query's part of a batch's answer. `values` are the bytes of its outputs, in their order."""

    __slots__ = ("_done", "_query", "_values")

    def __init__(self, done: pb.BatchDone, query: pb.QueryOutputs, values: Sequence[memoryview]) -> None:
        self._done = done
        self._query = query
        self._values = values

    def tensors(self) -> tuple[Tensor, ...]:
        """Raises ValueError when names, datatypes and values do not match."""
        done = self._done
        return tuple(
            Tensor(name, Datatype(datatype), tuple(output.shape), value)
            for name, datatype, output, value in zip(
                done.output_names, done.output_datatypes, self._query.outputs, self._values, strict=True
            )
        )


def batch_result(done: pb.BatchDone, values: Sequence[memoryview]) -> BatchResult:
    """Its outputs, by ticket number, are `Outputs`. `values` are the bytes of all outputs of all queries."""
    outputs, failed, at = {}, {}, 0
    for query in done.queries:
        end = at + len(query.outputs)
        if query.error_code:
            failed[query.id] = query.error_code, query.error
        else:
            outputs[query.id] = Outputs(done, query, values[at:end])
        at = end
    return BatchResult(done.error_code, done.error, done.was_running, done.staged_s, done.run_s, outputs, failed)
