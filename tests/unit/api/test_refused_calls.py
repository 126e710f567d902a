"""A refused call ends in its error's words, and leaves nothing behind that only the cycle collector could find."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import pytest
from infaas_controller.api import turned
from infaas_controller.api.auth import Authenticator
from infaas_controller.api.grpc_infer import GrpcInfer
from infaas_controller.api.service import Inference
from infaas_controller.ports import Answer, Outcome, QueryFailedError

from infaas.domain.ids import DecisionId
from infaas.domain.query import AccuracyConfidence, Code, Query
from infaas.errors import InfaasError
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.testing.builders import DIGITS_INPUTS, a_tensor, a_variant, a_view
from infaas.testing.clock import ManualClock
from infaas.tokens import Tokens


class Ended(Exception):
    """What ends a call."""


class Context:
    """Keeps what it raised, as the library's does."""

    def __init__(self, metadata: Sequence[tuple[str, str]], left_s: float | None) -> None:
        self.status: grpc.StatusCode | None = None
        self.trailing: dict[str, str] = {}
        self._metadata = metadata
        self._left_s = left_s
        self._raised: Exception | None = None

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return self._metadata

    def time_remaining(self) -> float | None:
        return self._left_s

    async def abort(self, status: grpc.StatusCode, details: str, trailing: Sequence[tuple[str, str]]) -> NoReturn:
        self.status, self.trailing = status, dict(trailing)
        self._raised = ended = Ended(details)
        del self  # the library's frames hold nothing
        raise ended


@dataclass
class Refusing:
    """Refuses every query. The parts of a `QueryService` that calls need."""

    view: Any
    seen: list[Query] = field(default_factory=list)
    alike: dict[str, int] = field(default_factory=dict)
    decision: Callable[[str], None] = lambda key: None

    async def submit(self, query: Query) -> Answer:
        self.seen.append(query)
        await asyncio.sleep(0)
        error = InfaasError("too much", code=Code.SATURATED, is_retryable=True, retry_after_s=1.0)
        raise QueryFailedError(error, Outcome(DecisionId(f"d-{len(self.seen)}"), slo_met=False))

    def note_alike(self, id: DecisionId, count: int) -> None:
        self.alike[id] = self.alike.get(id, 0) + count


class Server:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.service = Refusing(a_view(variants=[a_variant()]))
        inference = Inference(self.service, self.clock, AccuracyConfidence.POINT)  # type: ignore[arg-type]
        self._infer = GrpcInfer(inference, Authenticator(Tokens.of(None)))

    async def call(self, left_s: float | None = None, id_: str = "") -> Context:
        spec = DIGITS_INPUTS[0]
        tensor = a_tensor(spec)
        message = pb.ModelInferRequest(model_name="digits", id=id_, raw_input_contents=[bytes(tensor.data)])
        message.inputs.add(name=spec.name, datatype=spec.datatype.value, shape=tensor.shape)
        context = Context((("x-infaas-priority", "critical"),), left_s)
        await refused(self._infer.serve(message.SerializeToString(), context))
        return context


async def refused(call: Awaitable[bytes]) -> None:
    with pytest.raises(Ended, match="too much"):
        await call


async def test_calls_like_one_refused_are_told_the_same_for_a_moment_and_noted_after_it() -> None:
    server = Server()
    ended = [await server.call(id_=id_) for id_ in ("a", "b", "", "c")]
    assert len(server.service.seen) == 1
    assert {context.status for context in ended} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert [context.trailing.pop("x-request-id") for context in ended[:2]] == ["a", "b"]
    assert ended[0].trailing == ended[1].trailing
    assert ended[0].trailing["x-infaas-decision-id"] == "d-1"
    server.clock.advance(turned.HOLDS_S)
    await server.call()
    assert (len(server.service.seen), server.service.alike) == (2, {"d-1": 3})


async def test_of_calls_with_deadlines_who_has_more_time_is_asked_for_and_then_counts() -> None:
    server = Server()
    asked = []
    for left_s in (1.0, 0.9, 1.1, 1.05, 1.0, 1.2):
        await server.call(left_s)
        asked.append(len(server.service.seen))
    assert asked == [1, 1, 2, 2, 2, 3]
    assert {query.basis for query in server.service.seen} == {server.service.seen[0].basis}
    assert [query.requirements.latency_s for query in server.service.seen] == [1.0, 1.1, 1.2]
    assert server.service.alike == {"d-1": 1, "d-2": 2}


async def test_who_was_refused_with_less_time_shortens_nothing_for_the_others() -> None:
    server = Server()
    await server.call(1.0)
    await asyncio.gather(server.call(2.0), server.call(1.5))
    await server.call(1.9)
    assert len(server.service.seen) == 3, "both were on their way"


@pytest.mark.parametrize("is_turned", [False, True])
async def test_a_refused_call_leaves_no_cycle(monkeypatch: pytest.MonkeyPatch, is_turned: bool) -> None:
    if not is_turned:
        monkeypatch.setattr(turned, "HOLDS_S", 0.0)
    server = Server()
    await server.call()
    gc.collect()
    gc.disable()
    try:
        left = weakref.ref(await server.call())
        assert left() is None
    finally:
        gc.enable()
    assert len(server.service.seen) == (1 if is_turned else 2)
