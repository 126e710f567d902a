"""What a worker says of a batch that it is done with, read no further than somebody still waits for."""

from __future__ import annotations

from infaas.rpc.hop.columns import Column, ColumnsError, UnknownDatatypeError, read_columns
from infaas.rpc.hop.frames import FrameError
from infaas.rpc.hop.given import GivenAnswer
from infaas.rpc.v1 import worker_pb2 as pb
from infaas_controller.commands import BatchResult
from infaas_controller.outputs import Outputs


def batch_result(done: pb.BatchDone, payload: memoryview) -> BatchResult:
    """With the place of each answered ticket among its `answers`.

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
    outputs = dict(zip(numbers, range(len(numbers)), strict=True))
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
        Outputs(columns, problem),
    )


def given_result(given: GivenAnswer) -> BatchResult:
    """The same of what a worker of this process gave."""
    places = dict(zip(given.ids, range(len(given.ids)), strict=True))
    return BatchResult(
        "", "", True, given.staged_s, given.run_s, places, {}, given.others, given.run_items, Outputs(given.columns)
    )
