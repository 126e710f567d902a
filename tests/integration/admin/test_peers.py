"""Two controllers and what each remembers: over real Redis and a real HTTP listener."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI, Header, HTTPException, Response
from infaas_controller.listeners import HttpListener, bind
from infaas_controller.peers import Peers, maker_of, own_url

from infaas.domain.cluster import ControllerRecord
from infaas.domain.ids import ControllerId, DecisionId
from infaas.domain.query import Decision
from infaas.rpc.codec import encode
from infaas.store.base import Kind
from infaas.store.redis import RedisStore
from infaas.tokens import Tokens

DECISION = Decision(DecisionId("d-c-two-1f-7"), "r-7", "", "digits", None, None, "slo", {}, "saturated", "full")


def of(number: int, url: str, store: RedisStore, token: str | None = None) -> Peers:
    return Peers(store, ControllerRecord(ControllerId(f"c-{('one', 'two')[number - 1]}"), url), Tokens.of(token))


@asynccontextmanager
async def remembering(token: str | None = None) -> AsyncIterator[tuple[str, list[str]]]:
    """A controller's decisions over HTTP, and the queries that it got."""
    app, asked = FastAPI(), []

    @app.get("/v1/decisions/{key}")
    async def explain(key: str, here: bool, authorization: str | None = Header(None)) -> Response:
        asked.append(f"{key} here={here}")
        if token is not None and authorization != f"Bearer {token}":
            raise HTTPException(401)
        if key not in (DECISION.id, DECISION.request_id):
            raise HTTPException(404)
        return Response(encode(DECISION), media_type="application/json")

    listener = HttpListener(app, bind("127.0.0.1", 0, "test"), drain_timeout_s=1.0)
    serving = asyncio.create_task(listener.run(), name="peer")
    yield f"http://127.0.0.1:{listener.port}", asked
    listener.stop()
    await serving


@pytest.mark.parametrize("key", ["d-c-two-1f-7", "r-7"])
async def test_a_decision_is_had_from_the_controller_that_made_it(redis_store: RedisStore, key: str) -> None:
    async with remembering("s3cret") as (url, asked):
        await of(2, url, redis_store).announce()
        assert await of(1, "http://x", redis_store, "s3cret").decision(key) == DECISION
        assert asked == [f"{key} here=True"]


async def test_nobody_is_asked_for_our_own_or_for_one_whose_maker_is_gone(redis_store: RedisStore) -> None:
    async with remembering() as (url, asked):
        await of(2, url, redis_store).announce()
        mine = of(1, "http://x", redis_store)
        await mine.announce()
        assert await mine.decision("d-c-one-1f-7") is None
        assert await mine.decision("d-c-three-1f-7") is None
        assert asked == []
        assert await mine.decision("r-unknown") is None
        assert asked == ["r-unknown here=True"]


async def test_a_peer_that_does_not_answer_or_refuses_is_no_error(redis_store: RedisStore) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        await of(2, f"http://127.0.0.1:{taken.getsockname()[1]}", redis_store).announce()
        assert await of(1, "http://x", redis_store).decision("r-7") is None
    async with remembering("s3cret") as (url, _):
        again = of(2, url, redis_store)
        await again.announce()
        assert await of(1, "http://x", redis_store, "wrong").decision("r-7") is None
        await again.withdraw()
    assert (await redis_store.list((Kind.CONTROLLER,))).records == ()


async def test_a_record_that_an_emptied_store_forgot_is_written_again(redis_store: RedisStore) -> None:
    mine = of(1, "http://x", redis_store)
    await mine.announce()
    await mine.announce()
    assert (await redis_store.list((Kind.CONTROLLER,))).records[0].version == 1, "only touched"
    await redis_store.delete(Kind.CONTROLLER, "c-one")
    await mine.announce()
    assert len((await redis_store.list((Kind.CONTROLLER,))).records) == 1


def test_a_decision_id_names_its_controller_and_a_request_id_none() -> None:
    assert maker_of("d-c-9ee0dff1d6-40ab-5") == "c-9ee0dff1d6"
    assert [maker_of(key) for key in ("r-5bc4-1", "d-1", "d--1", "d-c-1f-x", "")] == [None] * 5


def test_others_dial_what_is_advertised_else_what_was_bound_else_this_machine() -> None:
    assert own_url("https://gate.example/", "0.0.0.0", 8000) == "https://gate.example"
    assert own_url(None, "127.0.0.1", 8000) == "http://127.0.0.1:8000"
    assert own_url(None, "::1", 8000) == "http://[::1]:8000"
    assert own_url(None, "0.0.0.0", 8000) == f"http://{socket.gethostname()}:8000"
