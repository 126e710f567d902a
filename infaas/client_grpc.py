"""Queries over gRPC: the same call and the same answer as `infaas.client.Client.infer`, in raw tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from infaas import errors
from infaas.client_answers import Inference, QueryError, Requirements, Served, served_from
from infaas.client_tensors import Array, datatype_of, from_bytes, to_bytes
from infaas.domain.query import Code
from infaas.domain.tensor import Datatype
from infaas.oip.v2 import grpc_service_pb2 as oip

METHOD = "/inference.GRPCInferenceService/ModelInfer"
MAX_MESSAGE_BYTES = 2**31 - 1
CODE_KEY = "x-infaas-code"

_CODES = {
    "INVALID_ARGUMENT": Code.INVALID,
    "UNAUTHENTICATED": Code.UNAUTHENTICATED,
    "PERMISSION_DENIED": Code.FORBIDDEN,
    "NOT_FOUND": Code.NOT_FOUND,
    "ABORTED": Code.CONFLICT,
    "FAILED_PRECONDITION": Code.SLO_UNSATISFIABLE,
    "RESOURCE_EXHAUSTED": Code.SATURATED,
    "UNAVAILABLE": Code.UNAVAILABLE,
    "DEADLINE_EXCEEDED": Code.DEADLINE_PASSED,
    "CANCELLED": Code.CANCELLED,
    "UNIMPLEMENTED": Code.UNSUPPORTED,
}


class GrpcClient:
    """One channel to one controller, `host:port`."""

    def __init__(self, target: str, token: str | None = None, *, timeout_s: float = 60.0) -> None:
        """`timeout_s` is our own patience. It is not sent: the server would take it for a latency objective and the
        task's default would no longer hold."""
        self._target = target
        self._token = token
        self._timeout_s = timeout_s
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.enable_http_proxy", 0),
        ]
        self._channel = grpc.insecure_channel(target, options=options)
        self._call = self._channel.unary_unary(
            METHOD,
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def infer(
        self,
        handle: str,
        inputs: Mapping[str, Array],
        requirements: Requirements | None = None,
        *,
        version: str | None = None,
        outputs: Sequence[str] = (),
        request_id: str | None = None,
        deadline_s: float | None = None,
    ) -> Inference:
        """`deadline_s` becomes the call's gRPC deadline, which counts as a latency objective where none is stated.

        Raises QueryError, with the code that the server names.
        """
        request = oip.ModelInferRequest(model_name=handle, model_version=version or "", id=request_id or "")
        for name, array in inputs.items():
            request.inputs.add(name=name, datatype=datatype_of(array).value, shape=list(array.shape))
            request.raw_input_contents.append(to_bytes(array))
        for name in outputs:
            request.outputs.add(name=name)
        metadata = list((requirements or Requirements()).headers().items())
        if request_id is not None:
            metadata.append(("x-request-id", request_id))
        if self._token:
            metadata.append(("authorization", f"Bearer {self._token}"))
        call = self._call.future(request, metadata=metadata, timeout=deadline_s)
        try:
            response = call.result(timeout=self._timeout_s)
        except grpc.FutureTimeoutError as error:
            call.cancel()
            text = f"{self._target} did not answer within {self._timeout_s:g} s"
            raise QueryError(errors.UnavailableError(text), Served(), {}) from error
        except grpc.RpcError as error:
            raise self._failed(error) from error
        headers = _texts(call.initial_metadata()) | _texts(call.trailing_metadata())
        return Inference(
            outputs={
                tensor.name: from_bytes(raw, Datatype(tensor.datatype), list(tensor.shape))
                for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
            },
            model=response.model_name,
            version=response.model_version or None,
            served=served_from(headers),
            headers=headers,
        )

    def _failed(self, error: Any) -> QueryError:
        headers = _texts(error.initial_metadata()) | _texts(error.trailing_metadata())
        status = error.code().name
        try:
            code = Code(headers.get(CODE_KEY, ""))
        except ValueError:
            code = _CODES.get(status, Code.INTERNAL)
        text = error.details() or status
        served = served_from(headers)
        if status == "UNAVAILABLE" and served == Served():
            text = f"no controller answers at {self._target} ({text})"
        retry_after = headers.get("retry-after", "")
        cause = errors.InfaasError(text, code=code, retry_after_s=float(retry_after) if retry_after.isdigit() else None)
        return QueryError(cause, served, headers)


def _texts(metadata: Any) -> dict[str, str]:
    """gRPC's metadata without its binary entries."""
    return {key: value for key, value in metadata or () if isinstance(value, str)}
