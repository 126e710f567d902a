"""What a worker says of a batch that it is done with, read no further than somebody still waits for."""

from __future__ import annotations

from infaas.domain.tensor import Tensor
from infaas.rpc.hop.columns import Column, ColumnsError, UnknownDatatypeError, read_columns
from infaas.rpc.hop.frames import FrameError
from infaas.rpc.v1 import worker_pb2 as pb
from infaas_controller.commands import BatchResult


class Outputs:
    """One query's place in the columns of a batch's answer."""

    __slots__ = ("_columns", "_place", "_problem")

    def __init__(self, columns: tuple[Column, ...], place: int, problem: str) -> None:
        self._columns = columns
        self._place = place
        self._problem = problem

    def tensors(self) -> tuple[Tensor, ...]:
        """Views of the answer's bytes. Raises ValueError when it cannot be read."""
        if self._problem:
            raise ValueError(self._problem)
        place = self._place
        return tuple([Tensor(column.name, column.datatype, *column.part(place)) for column in self._columns])


def batch_result(done: pb.BatchDone, payload: memoryview) -> BatchResult:
    """Its outputs, by ticket number, are `Outputs`.

    Raises FrameError when the message contradicts itself or the bytes that came with it. A datatype that is not known
    here is found out by whoever wants the tensors.
    """
    numbers, items = done.queries[:], done.items[:]  # a slice is read in one go
    if len(items) != len(numbers):
        raise FrameError(f"a batch is done with {len(numbers)} answers and {len(items)} numbers of items")
    columns: tuple[Column, ...] = ()
    problem = ""
    try:
        columns = read_columns(done.outputs, items, done.sizes, payload)
    except UnknownDatatypeError as error:
        problem = f"output {error}"
    except ColumnsError as error:
        raise FrameError(f"what is said of a batch's outputs does not fit them: {error}") from error
    outputs = {number: Outputs(columns, place, problem) for place, number in enumerate(numbers)}
    failed = {failure.id: (failure.error_code, failure.error) for failure in done.failures}
    return BatchResult(
        done.error_code,
        done.error,
        done.was_running,
        done.staged_s,
        done.run_s,
        outputs,
        failed,
        done.others,
        done.run_items,
    )
