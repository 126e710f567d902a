"""Callers below any client library: bytes on a socket, bytes in a gRPC message, and what came back for them."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from infaas.oip.v2 import grpc_service_pb2 as pb

PATIENCE_S = 60.0
TOKEN = "a-token-of-the-tests"
CREDENTIAL = {"authorization": f"Bearer {TOKEN}"}
METHOD = "/inference.GRPCInferenceService/"


@dataclass(frozen=True)
class Seen:
    """What a caller got. `status` is HTTP's number or gRPC's name; `code` the slug; both empty when it got nothing."""

    status: str
    code: str = ""
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def body_of(items: int = 1, **change: Any) -> dict[str, Any]:
    """A good query of `simple`, with its first input changed."""
    data = list(range(16 * items))
    inputs: list[dict[str, Any]] = [
        {"name": name, "shape": [items, 16], "datatype": "INT32", "data": data} for name in ("INPUT0", "INPUT1")
    ]
    inputs[0] |= change
    return {"inputs": inputs}


def request_bytes(
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    *,
    has_length: bool = True,
    has_credential: bool = True,
) -> bytes:
    """A request as it goes over the wire; `headers` may repeat or contradict themselves."""
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    if has_credential:
        pairs = [*CREDENTIAL.items(), *pairs]
    if has_length:
        pairs.append(("content-length", str(len(body))))
    head = "".join(f"{name}: {value}\r\n" for name, value in pairs)
    return f"{method} {path} HTTP/1.1\r\nhost: test\r\n{head}\r\n".encode("latin-1") + body


class RestCaller:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)

    def __enter__(self) -> RestCaller:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, *pieces: bytes) -> None:
        """All of it, unless the other side closes first: then there may be an answer to read all the same."""
        try:
            for piece in pieces:
                self.socket.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def answer(self) -> Seen:
        """The next answer; an empty one when the connection ends without it."""
        answer = http.client.HTTPResponse(self.socket)
        try:
            answer.begin()
            body = answer.read()
        except (http.client.BadStatusLine, ConnectionResetError):
            return Seen("")
        headers = {name.lower(): value for name, value in answer.getheaders()}
        document = json.loads(body) if headers.get("content-type") == "application/json" and body else {}
        if not isinstance(document, dict) or "error" not in document:
            return Seen(str(answer.status), "", "", headers, body)
        assert set(document) >= {"error", "code", "request_id", "decision_id", "retryable"}, document
        assert document["request_id"] == headers["x-request-id"]
        return Seen(str(answer.status), document["code"], document["error"], headers, body)

    def is_closed(self) -> bool:
        """Whether the other side ended the connection; waits for it."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def rest(port: int, *pieces: bytes) -> Seen:
    with RestCaller(port) as caller:
        caller.send(*pieces)
        return caller.answer()


def message_of(items: int = 1, *, model: str = "simple") -> Any:
    """A good query of `simple`, raw."""
    message = pb.ModelInferRequest(model_name=model)
    for name in ("INPUT0", "INPUT1"):
        message.inputs.add(name=name, datatype="INT32", shape=[items, 16])
        message.raw_input_contents.append(np.arange(16 * items, dtype=np.int32).tobytes())
    return message


class GrpcCaller:
    """One channel that sends bytes as they are."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(
            target, options=[("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 1 << 20)]
        )

    def close(self) -> None:
        self._channel.close()

    def call(
        self,
        message: Any,
        metadata: Iterable[tuple[str, str | bytes]] = (),
        *,
        method: str = "ModelInfer",
        has_credential: bool = True,
        timeout_s: float | None = PATIENCE_S,
    ) -> Seen:
        data = message if isinstance(message, bytes) else message.SerializeToString()
        pairs = [*(CREDENTIAL.items() if has_credential else ()), *metadata]
        call = self._channel.unary_unary(METHOD + method)
        try:
            answer, done = call.with_call(data, timeout=timeout_s, metadata=pairs)
        except grpc.RpcError as error:
            trailers = {key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)}
            return Seen(error.code().name, trailers.get("x-infaas-code", ""), error.details() or "", trailers)
        trailers = {key: value for key, value in done.trailing_metadata() or () if isinstance(value, str)}
        return Seen("OK", "", "", trailers, answer)
