"""Queries over gRPC from prepared bytes: nothing is serialised or parsed while the clock runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import grpc.aio

from infaas.bench.reply import BROKEN, FOREIGN, OK, Reply
from infaas.client_grpc import CODE_KEY, MAX_MESSAGE_BYTES, METHOD
from infaas.client_tensors import Array, datatype_of, from_bytes, to_bytes
from infaas.domain.tensor import Datatype
from infaas.oip.v2 import grpc_service_pb2 as oip

Metadata = Sequence[tuple[str, str]]


def query_bytes(handle: str, inputs: Mapping[str, Array]) -> bytes:
    request = oip.ModelInferRequest(model_name=handle)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=datatype_of(array).value, shape=list(array.shape))
        request.raw_input_contents.append(to_bytes(array))
    return request.SerializeToString()


def outputs_of(reply: Reply) -> dict[str, Array]:
    """The arrays of an answer."""
    answer = oip.ModelInferResponse.FromString(reply.content)
    return {
        tensor.name: from_bytes(raw, Datatype(tensor.datatype), list(tensor.shape))
        for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


class GrpcChannels:
    """Some channels to one server, used in turn: one alone is one connection, whose streams share a window."""

    def __init__(self, target: str, *, channels: int = 4) -> None:
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
        ]
        # A channel's number keeps it from sharing another one's connection.
        self._channels = [
            grpc.aio.insecure_channel(target, options=[*options, ("grpc.channel_number", number)])
            for number in range(channels)
        ]
        self._calls = [channel.unary_unary(METHOD) for channel in self._channels]
        self._next = 0

    async def ask(self, query: bytes, metadata: Metadata) -> Reply:
        """No deadline is sent: the server would take it for a latency objective. Cancelling takes the query back."""
        self._next = (self._next + 1) % len(self._calls)
        call = self._calls[self._next](query, metadata=metadata)
        try:
            content = await call
        except grpc.aio.AioRpcError as error:
            return _failure(error)
        return Reply(OK, False, _texts(await call.initial_metadata(), await call.trailing_metadata()), content)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


def _failure(error: grpc.aio.AioRpcError) -> Reply:
    fields = _texts(error.initial_metadata(), error.trailing_metadata())
    status = error.code().name
    code = fields.get(CODE_KEY)
    if code is None:
        code = BROKEN if status == "UNAVAILABLE" else f"{FOREIGN}-{status.lower()}"
    text = json.dumps({"error": error.details()}).encode()
    return Reply(code, status in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"), fields, text)


def _texts(*metadata: Any) -> dict[str, str]:
    return {key: value for some in metadata for key, value in some or () if isinstance(value, str)}
