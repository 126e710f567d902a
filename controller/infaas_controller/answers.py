"""What a worker says of a batch that it is done with, read no further than somebody still waits for."""

from __future__ import annotations

from collections.abc import Sequence

from infaas.domain.tensor import Datatype, Tensor
from infaas.rpc.v1 import worker_pb2 as pb
from infaas_controller.commands import BatchResult

_DATATYPES = {datatype.value: datatype for datatype in Datatype}


class Outputs:
    """One query's part of a batch's answer."""

    __slots__ = ("_datatypes", "_names", "_query")

    def __init__(self, names: Sequence[str], datatypes: Sequence[str], query: pb.QueryOutputs) -> None:
        self._names = names
        self._datatypes = datatypes
        self._query = query

    def tensors(self) -> tuple[Tensor, ...]:
        """Raises ValueError when names, datatypes and values do not match."""
        found = zip(self._names, self._datatypes, self._query.outputs, strict=True)
        return tuple(
            [Tensor(name, _datatype(datatype), tuple(value.shape), value.data) for name, datatype, value in found]
        )


def batch_result(done: pb.BatchDone) -> BatchResult:
    """Its outputs, by ticket number, are `Outputs`."""
    names, datatypes = tuple(done.output_names), tuple(done.output_datatypes)
    outputs: dict[int, object] = {}
    failed: dict[int, tuple[str, str]] = {}
    for query in done.queries:
        code = query.error_code
        if code:
            failed[query.id] = (code, query.error)
        else:
            outputs[query.id] = Outputs(names, datatypes, query)
    return BatchResult(done.error_code, done.error, done.was_running, done.staged_s, done.run_s, outputs, failed)


def _datatype(text: str) -> Datatype:
    found = _DATATYPES.get(text)
    return Datatype(text) if found is None else found  # which says what is wrong with it
