"""A callers' token that is changed while the controller runs, over every way in, whatever it remembers of callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
from computing_service import ComputingService
from serving import Serving, serving

from infaas.oip.v2 import grpc_service_pb2 as oip
from infaas.settings import AuthSettings, Settings
from infaas.tokens import LOOK_EVERY_S

BODY = {"inputs": [{"name": "scores", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}]}
PATIENCE_S = 20.0


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
async def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Serving, Path]]:
    file = tmp_path / "token"
    file.write_text("old")
    settings = Settings(auth=AuthSettings(token_file=file))
    async with serving(ComputingService(), settings, has_fast_way=request.param) as running:
        yield running, file


async def over_rest(client: httpx.AsyncClient, token: str) -> bool:
    answer = await client.post("/v2/models/rank/infer", json=BODY, headers={"authorization": f"Bearer {token}"})
    assert answer.status_code in (200, 401), answer.text
    return answer.status_code == 200


async def over_grpc(channel: grpc.aio.Channel, token: str) -> bool:
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    tensor = oip.ModelInferRequest.InferInputTensor(name="scores", datatype="FP32", shape=[1, 4])
    request = oip.ModelInferRequest(model_name="rank", inputs=[tensor], raw_input_contents=[bytes(16)])
    try:
        await call(request.SerializeToString(), metadata=(("authorization", f"Bearer {token}"),))
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return False
        raise
    return True


async def test_what_was_good_is_asked_for_again_once_the_token_changed(guarded: tuple[Serving, Path]) -> None:
    running, file = guarded
    async with (
        httpx.AsyncClient(base_url=f"http://{running.http}") as client,
        grpc.aio.insecure_channel(running.grpc) as channel,
    ):

        async def ways(token: str) -> set[bool]:
            return {await over_rest(client, token), await over_grpc(channel, token)}

        async def becomes(token: str, expected: set[bool]) -> None:
            async with asyncio.timeout(PATIENCE_S):
                while await ways(token) != expected:  # noqa: ASYNC110  (the file is looked at now and then)
                    await asyncio.sleep(LOOK_EVERY_S / 20)

        for _ in range(5):  # so that it is known by heart
            assert await ways("old") == {True}
        assert await ways("new") == {False}
        file.write_text("new\nold")
        await becomes("new", {True})
        assert await ways("old") == {True}
        file.write_text("new")
        await becomes("old", {False})
        assert await ways("new") == {True}
