"""Triton servers that are slow, stand still or are somebody's secret: what asking them costs everybody else."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from infaas_controller.register.foreign import ForeignServers

from infaas.errors import InvalidError, UnavailableError
from infaas.oip.v2 import grpc_service_pb2 as oip
from infaas.triton.server import SERVICE


@pytest.fixture
def silent_url() -> Iterator[str]:
    """Somebody takes connections there and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"grpc://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def servers() -> Iterator[ForeignServers]:
    made = ForeignServers(None)
    yield made
    made.close()


Mute = tuple[str, set[str]]


@pytest.fixture
def mute_about() -> Iterator[Mute]:
    """The address of a server that has a model `a`, and those that it never says anything about."""
    mute: set[str] = set()
    over = threading.Event()

    def index(_: Any, __: Any) -> Any:
        names = ["a", *sorted(mute)]
        models = [oip.RepositoryIndexResponse.ModelIndex(name=name, version="1", state="READY") for name in names]
        return oip.RepositoryIndexResponse(models=models)

    def metadata(request: Any, _: Any) -> Any:
        if request.name in mute:
            over.wait(30.0)
        return oip.ModelMetadataResponse(name=request.name, versions=["1"], platform="onnxruntime_onnx")

    def config(request: Any, _: Any) -> Any:
        made = oip.ModelConfigResponse()
        made.config.name, made.config.platform = request.name, "onnxruntime_onnx"
        return made

    calls: dict[str, tuple[Any, Any]] = {
        "ServerLive": (oip.ServerLiveRequest, lambda _, __: oip.ServerLiveResponse(live=True)),
        "RepositoryIndex": (oip.RepositoryIndexRequest, index),
        "ModelMetadata": (oip.ModelMetadataRequest, metadata),
        "ModelConfig": (oip.ModelConfigRequest, config),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(call, kind.FromString, lambda message: message.SerializeToString())
        for name, (kind, call) in calls.items()
    }
    server = grpc.server(ThreadPoolExecutor(32))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"grpc://127.0.0.1:{port}", mute
    over.set()
    server.stop(None).wait()


def asking_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("triton-ask")]


async def test_servers_that_stand_still_leave_the_other_threads_free(servers: ForeignServers, silent_url: str) -> None:
    """As many questions as the controller has threads for all else that blocks, and more."""
    asked = [asyncio.create_task(servers.discover(silent_url), name=f"ask-{number}") for number in range(40)]
    asked += [
        asyncio.create_task(servers.facts(silent_url, "m", ""), name=f"facts-{number}") for number in range(40)
    ]  # fmt: skip
    await asyncio.sleep(0)
    assert await asyncio.to_thread(lambda: "free") == "free"
    assert not any(one.done() for one in asked)
    assert len(asking_threads()) <= 4
    for one in asked:
        one.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*asked, return_exceptions=True))


async def test_one_server_that_stands_still_does_not_keep_others_from_being_asked(
    servers: ForeignServers, silent_url: str
) -> None:
    asked = [asyncio.create_task(servers.discover(silent_url), name=f"ask-{number}") for number in range(8)]
    await asyncio.sleep(0)
    with pytest.raises(InvalidError, match="link-local"):  # said by a thread, before anything is dialled
        await servers.discover("grpc://169.254.169.254:80")
    assert not any(one.done() for one in asked)
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_a_question_ends_within_its_bound_and_leaves_no_thread_behind(silent_url: str) -> None:
    servers = ForeignServers(None, discover_s=0.2, facts_s=0.3)
    with pytest.raises(UnavailableError, match=r"did not say all within 0\.2 s"):
        await servers.discover(silent_url)
    with pytest.raises(UnavailableError, match=r"did not say all within 0\.3 s"):
        await servers.facts(silent_url, "m", "")
    await asyncio.to_thread(servers.close)
    assert asking_threads() == []


async def test_threads_that_hang_where_no_closed_connection_ends_them_keep_their_servers_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    goes_on, resolve = threading.Event(), socket.getaddrinfo

    def hanging(host: str, *rest: Any, **options: Any) -> Any:
        if host == "slow.example":
            goes_on.wait(30.0)
        return resolve(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    servers = ForeignServers(None, discover_s=0.2, facts_s=10.0)
    try:
        for _ in range(5):
            with pytest.raises(UnavailableError, match="did not say all"):
                await servers.discover("grpc://slow.example:8001")
        with pytest.raises(InvalidError, match="link-local"):
            await servers.facts("grpc://169.254.169.254:80", "m", "")
    finally:
        goes_on.set()
        await asyncio.to_thread(servers.close)


@pytest.mark.long
async def test_a_discovery_lists_the_models_that_it_had_no_time_to_ask_about(mute_about: Mute) -> None:
    url, mute = mute_about
    mute.add("b")
    servers = ForeignServers(url, discover_s=4.0)
    found = {one.name: one for one in await servers.discover(url)}
    await asyncio.to_thread(servers.close)
    assert list(found) == ["a", "b"]
    assert (found["a"].platform, found["a"].reason) == ("onnxruntime_onnx", "")
    assert found["b"].platform == ""
    assert "no Triton server answers" in found["b"].reason

    servers = ForeignServers(url, discover_s=4.0)
    mute.update(f"m{number}" for number in range(9))
    late = await servers.discover(url)
    await asyncio.to_thread(servers.close)
    assert "before its turn" in late[-1].reason
    assert len(late) == 11


async def test_closing_ends_what_is_still_being_asked(silent_url: str) -> None:
    servers = ForeignServers(None)
    asked = asyncio.create_task(servers.facts(silent_url, "m", ""), name="ask")
    await asyncio.sleep(0)
    assert len(asking_threads()) == 1
    await asyncio.to_thread(servers.close)
    with pytest.raises((UnavailableError, asyncio.CancelledError)):
        await asked
    assert asking_threads() == []


@pytest.mark.parametrize(
    "url", ["grpc://169.254.169.254:80", "grpc://2852039166:80", "grpcs://[fe80::1]:443", "grpc://0xa9fea9fe:80"]
)
async def test_a_link_local_address_is_asked_nothing(servers: ForeignServers, url: str) -> None:
    with pytest.raises(InvalidError, match=r"worker\.triton_url"):
        await servers.facts(url, "m", "")


async def test_a_link_local_address_that_the_configuration_names_is_asked() -> None:
    url = "grpcs://[fe80::1]:443"
    servers = ForeignServers(url + "/", discover_s=0.2)
    with pytest.raises(UnavailableError):
        await servers.discover(url)
    await asyncio.to_thread(servers.close)
