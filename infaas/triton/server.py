"""One Triton server over gRPC, with the messages that we serve the same protocol with ourselves.

Calls block, so that a thread of the caller's is what waits; each has a deadline. The channel connects by itself and
again after a loss, with growing, jittered waits (gRPC's own backoff), and is this object's own: what another caller
found unreachable does not make this one wait. Nothing of `tritonclient` is needed: its messages clash with ours in one
process, and it would be one more thing to import in every worker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from infaas.domain.query import Code
from infaas.errors import InfaasError, InvalidError, ModelError, NotFoundError, UnavailableError, UnsupportedError
from infaas.oip.v2 import grpc_service_pb2 as oip
from infaas.triton.address import parse_address
from infaas.triton.facts import Listed, ModelFacts, facts_of

T = TypeVar("T")
SERVICE = "inference.GRPCInferenceService"
"""As in the OIP; our own stubs of it carry another package's name."""
MAX_MESSAGE_BYTES = 2**31 - 1
CONNECT_S = 5.0
CALL_S = 10.0
LOAD_S = 300.0
"""A server may take minutes to load a model onto a device."""
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]
_FULL = ("maximum queue size", "exceeds maximum queue")
_GONE = ("unknown model", "no available versions", "is not found", "not ready", "is not available", "unloading")
READY = "READY"


class TritonServer:
    """May be shared by threads. Opened by whoever makes it and closed by them."""

    def __init__(self, url: str) -> None:
        """Connects with the first call. Raises InvalidError for an address that is none."""
        address = parse_address(url)
        self.url = url
        if address.is_encrypted:
            self._channel = grpc.secure_channel(address.target, grpc.ssl_channel_credentials(), options=_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address.target, options=_OPTIONS)
        self._methods: dict[str, Any] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Whatever is pending ends."""
        self._channel.close()

    def require_live(self, timeout_s: float = CONNECT_S) -> None:
        """Wait until the server is connected and live. Raises UnavailableError.

        Live, not ready: a Triton server is not ready while any model of its repository is unloaded or broken, and says
        so of models that are none of our business.
        """
        answer = self._call("ServerLive", oip.ServerLiveRequest(), oip.ServerLiveResponse, timeout_s, waits=True)
        if not answer.live:
            raise UnavailableError(f"the Triton server at {self.url} says that it is not live")

    def index(self) -> tuple[Listed, ...]:
        """Everything in its repository, loaded or not. Raises UnavailableError."""
        answer = self._call("RepositoryIndex", oip.RepositoryIndexRequest(), oip.RepositoryIndexResponse, CALL_S)
        return tuple(Listed(one.name, one.version, one.state, one.reason) for one in answer.models)

    def is_model_ready(self, model: str, version: str) -> bool:
        request = oip.ModelReadyRequest(name=model, version=version)
        return bool(self._call("ModelReady", request, oip.ModelReadyResponse, CALL_S).ready)

    def facts(self, model: str, version: str = "", *, call_s: float = CALL_S) -> ModelFacts:
        """Two calls of at most `call_s` each. Raises NotFoundError when it is not loaded, InvalidError for a version
        that is not there."""
        metadata = self._call(
            "ModelMetadata", oip.ModelMetadataRequest(name=model), oip.ModelMetadataResponse, call_s, about=model
        )
        config = self._call(
            "ModelConfig", oip.ModelConfigRequest(name=model), oip.ModelConfigResponse, call_s, about=model
        )
        return facts_of(metadata, config.config, version)

    def ensure_loaded(self, model: str, version: str = "") -> bool:
        """Have the server load a model if it has not; True when this call made it.

        Raises NotFoundError for a model that its repository has not, UnavailableError when the server does not load
        models on request (its model control mode is not explicit), ModelError when it cannot load it.
        """
        if self.is_model_ready(model, version):
            return False
        if not any(one.name == model for one in self.index()):
            raise NotFoundError(f"the Triton server at {self.url} has no model {model!r} in its repository")
        try:
            self._call(
                "RepositoryModelLoad",
                oip.RepositoryModelLoadRequest(model_name=model),
                oip.RepositoryModelLoadResponse,
                LOAD_S,
            )
        except InfaasError as error:
            if "explicit" in error.text:
                raise UnavailableError(
                    f"model {model!r} is not loaded on the Triton server at {self.url}, and that loads nothing on "
                    "request (it was not started with --model-control-mode explicit)"
                ) from error
            if isinstance(error, UnavailableError):
                raise
            raise ModelError(f"the Triton server at {self.url} cannot load {model!r}: {error.text}") from error
        return True

    def unload(self, model: str) -> None:
        """Raises UnavailableError, and what the server says."""
        request = oip.RepositoryModelUnloadRequest(model_name=model)
        self._call("RepositoryModelUnload", request, oip.RepositoryModelUnloadResponse, CALL_S)

    def infer(
        self, request: oip.ModelInferRequest, timeout_s: float, on_start: Callable[[grpc.Future], None] | None = None
    ) -> oip.ModelInferResponse:
        """One request; `on_start` gets a handle whose `cancel` ends it, here and in the server's queue.

        Raises ModelError when the model failed, InvalidError when the tensors do not fit it, UnavailableError when
        the server or the model is gone, InfaasError with SATURATED, DEADLINE_PASSED or CANCELLED.
        """
        call = self._method("ModelInfer", oip.ModelInferResponse).future(request, timeout=timeout_s)
        if on_start is not None:
            on_start(call)
        try:
            answer: oip.ModelInferResponse = call.result()
        except grpc.FutureCancelledError:
            raise InfaasError("the request was cancelled", code=Code.CANCELLED) from None
        except grpc.RpcError as error:
            raise self._translated(error, timeout_s, request.model_name) from error
        return answer

    def _call(
        self, name: str, request: Any, kind: type[T], timeout_s: float, *, waits: bool = False, about: str = ""
    ) -> T:
        try:
            answer: T = self._method(name, kind)(request, timeout=timeout_s, wait_for_ready=waits)
        except grpc.RpcError as error:
            translated = self._translated(error, timeout_s, about)
            if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
                raise UnavailableError(f"no Triton server answers at {self.url} within {timeout_s:g} s") from error
            if about and translated.is_retryable and _says(error, _GONE):
                raise NotFoundError(f"model {about!r} is not loaded on the Triton server at {self.url}") from error
            raise translated from error
        except ValueError as error:  # the channel was closed by another thread
            raise UnavailableError(f"the connection to {self.url} is closed") from error
        return answer

    def _method(self, name: str, kind: Any) -> Any:
        with self._lock:
            found = self._methods.get(name)
            if found is None:
                found = self._methods[name] = self._channel.unary_unary(
                    f"/{SERVICE}/{name}",
                    request_serializer=lambda message: message.SerializeToString(),
                    response_deserializer=kind.FromString,
                )
            return found

    def _translated(self, error: Any, timeout_s: float, model: str) -> InfaasError:
        """gRPC's and Triton's words as ours."""
        code, said = error.code(), _first_line(error)
        where = f"the Triton server at {self.url}"
        if code is grpc.StatusCode.UNAVAILABLE and _says(error, _FULL):
            return InfaasError(f"{where} is full: {said}", code=Code.SATURATED, is_retryable=True)
        if code is grpc.StatusCode.UNAVAILABLE or (code is grpc.StatusCode.NOT_FOUND and model):
            return UnavailableError(f"{where}: {said}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return InfaasError(f"{where} did not answer within {timeout_s:.3g} s", code=Code.DEADLINE_PASSED)
        if code is grpc.StatusCode.CANCELLED:
            return InfaasError("the request was cancelled", code=Code.CANCELLED)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidError(f"{where} refuses: {said}")
        if code is grpc.StatusCode.NOT_FOUND:
            return NotFoundError(f"{where}: {said}")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return UnsupportedError(f"{where}: {said}")
        return ModelError(said)


def _says(error: Any, signs: tuple[str, ...]) -> bool:
    said = (error.details() or "").lower()
    return any(sign in said for sign in signs)


def _first_line(error: Any) -> str:
    text = (error.details() or "").strip() or error.code().name
    return str(text.splitlines()[0][:500])
