"""What a worker says of a batch that it is done with, read no further than somebody still waits for."""

from __future__ import annotations

from infaas.domain.tensor import Datatype, Tensor
from infaas.rpc.v1 import worker_pb2 as pb
from infaas_controller.commands import BatchResult


class Outputs:
    """One query's part of a batch's answer."""

    __slots__ = ("_done", "_query")

    def __init__(self, done: pb.BatchDone, query: pb.QueryOutputs) -> None:
        self._done = done
        self._query = query

    def tensors(self) -> tuple[Tensor, ...]:
        """Raises ValueError when names, datatypes and values do not match."""
        done, values = self._done, self._query.outputs
        return tuple(
            Tensor(name, Datatype(datatype), tuple(value.shape), value.data)
            for name, datatype, value in zip(done.output_names, done.output_datatypes, values, strict=True)
        )


def batch_result(done: pb.BatchDone) -> BatchResult:
    """Its outputs, by ticket number, are `Outputs`."""
    outputs = {query.id: Outputs(done, query) for query in done.queries if not query.error_code}
    failed = {query.id: (query.error_code, query.error) for query in done.queries if query.error_code}
    return BatchResult(done.error_code, done.error, done.was_running, done.staged_s, done.run_s, outputs, failed)
