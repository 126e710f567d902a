"""The bulk process: one job after another from its input, until that ends.

It is a process and not a thread because the readers and writers of JSON and protobuf hold the interpreter lock from
the first byte to the last: a thread would stop the controller's loop just as well. It has a bound of memory, no
settings and no sockets.
"""

from __future__ import annotations

import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from io import FileIO

from infaas.domain.query import Code
from infaas.errors import InfaasError, InvalidError
from infaas.rpc.edges import HIDDEN_TEXT, MAX_PROBLEMS, shortened
from infaas.rpc.tensors import InferRequest, classify
from infaas.rpc.tensors_grpc import decode_message
from infaas.rpc.tensors_json import decode_request as decode_rest
from infaas.rpc.tensors_json import encode_data
from infaas_controller.api.bulk import wire

MEMORY_BYTES = 4 * 2**30
"""Address space: several times what the largest request takes while it is read."""


def perform(asked: bytes, buffers: Sequence[wire.Buffer]) -> tuple[bytes, Sequence[wire.Buffer]]:
    """From the head of a job to that of its reply. Never raises: an error is a reply."""
    try:
        job = wire.job_decoder.decode(asked)
        reply, made = _performed(job, buffers)
        return _encoded(job, reply), made
    except InfaasError as error:
        problems = tuple(shortened(one) for one in error.problems[:MAX_PROBLEMS])
        failed = wire.Failed(shortened(error.text), error.code.value, problems)
    except MemoryError:
        text = "the request takes too much memory to read; send its tensors as binary data"
        failed = wire.Failed(text, Code.TOO_LARGE.value)
    except Exception:
        failed = wire.Failed(HIDDEN_TEXT, Code.INTERNAL.value, details=traceback.format_exc(limit=-8))
    return wire.encode(failed), ()


def _encoded(job: wire.Job, reply: wire.Reply) -> bytes:
    """Raises InvalidError for a request with a number, beside its tensors, that no reply can carry."""
    try:
        return wire.encode(reply)
    except OverflowError as error:
        if not isinstance(job, wire.ReadRest | wire.ReadGrpc):
            raise
        raise InvalidError("a number beside the tensors is outside the range of INT64") from error


def _performed(job: wire.Job, buffers: Sequence[wire.Buffer]) -> tuple[wire.Reply, Sequence[wire.Buffer]]:
    (data,) = buffers
    match job:
        case wire.ReadRest(header_length):
            return _request(decode_rest(data, header_length))
        case wire.ReadGrpc():
            return _request(decode_message(bytes(data)))
        case wire.Render(tensor):
            return wire.Made(), (encode_data(wire.tensor_of(tensor, data)),)
        case wire.Classify(tensor, top, labels):
            made = classify(wire.tensor_of(tensor, data), top, labels)
            return wire.Made(wire.outline(made)), (made.data,)


def _request(request: InferRequest) -> tuple[wire.Reply, Sequence[wire.Buffer]]:
    found = wire.Request(
        inputs=tuple(wire.outline(tensor) for tensor in request.inputs),
        outputs=request.outputs,
        id=request.id,
        parameters=dict(request.parameters),
        binary_output=request.binary_output,
    )
    return found, tuple(tensor.data for tensor in request.inputs)


def main() -> None:
    """Replies go to the descriptor that the one argument names: what libraries print is not mixed with them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the end of its input is the end of it
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with FileIO(sys.stdin.fileno(), closefd=False) as jobs, FileIO(int(sys.argv[1]), "w") as replies:
        while True:
            try:
                asked, buffers = wire.receive(jobs)
                reply, made = perform(asked, buffers)
                del buffers
                wire.send(replies, reply, made)
            except (EOFError, BrokenPipeError):
                return
            del reply, made


if __name__ == "__main__":
    main()
