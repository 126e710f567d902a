"""Getting into a real Redis: by a password, by a user with rights, by TLS; and what a change of them does."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from infaas.errors import SettingsError, UnavailableError
from infaas.settings import load_settings
from infaas.store.base import Kind
from infaas.store.opening import open_store
from infaas.store.redis import RedisStore
from infaas.testing.certificates import Authority

SECRET = "p@ss:w/rd 5ecret%"
"""Everything that a URL would have to quote."""


@pytest.fixture
async def manage(own_redis_server: Any) -> AsyncIterator[Callable[..., Coroutine[Any, Any, Any]]]:
    """Runs commands on the server as one that was let in before anything changed."""
    admin = RedisStore(own_redis_server.url)
    async with admin._redis.client() as client:
        await client.ping()

        async def run(*words: str) -> Any:
            return await client.execute_command(*words)  # type: ignore[no-untyped-call]

        yield run
    await admin.close()


def opened(url: str, **variables: str | Path) -> RedisStore:
    environ = {f"INFAAS_STORE__{name.upper()}": str(value) for name, value in variables.items()}
    return open_store(load_settings(environ={"INFAAS_STORE__REDIS_URL": url, **environ}))


async def is_let_in(store: RedisStore) -> bool:
    try:
        await store.put(Kind.TASK, "a", b"1")
    except UnavailableError as error:
        if error.is_retryable or SECRET in error.text:
            raise
        return False
    return True


async def test_a_password_from_a_file_opens_the_store_and_a_wrong_one_does_not(
    own_redis_server: Any, manage: Any, tmp_path: Path
) -> None:
    await manage("CONFIG", "SET", "requirepass", SECRET)
    file = tmp_path / "password"
    for text, expected in ((f"{SECRET}\n", True), ("wrong", False)):
        file.write_text(text)
        store = opened(own_redis_server.url, password_file=file)
        assert await is_let_in(store) is expected
        await store.close()
    for variables, expected in (({"password": SECRET}, True), ({}, False)):
        store = opened(own_redis_server.url, **variables)
        assert await is_let_in(store) is expected
        await store.close()


async def test_a_user_with_rights_to_our_keys_alone_is_enough(
    own_redis_server: Any, manage: Any, tmp_path: Path
) -> None:
    """What the operations page says such a user needs."""
    rights = ("~{infaas}:*", "-@all", "+@read", "+@write", "+@scripting", "+@connection", "+time")
    await manage("ACL", "SETUSER", "infaas", "on", f">{SECRET}", *rights)
    await manage("ACL", "SETUSER", "default", "off")
    file = tmp_path / "password"
    file.write_text(SECRET)
    store = opened(own_redis_server.url.replace("unix://", "unix://infaas@"), password_file=file)
    snapshot = await store.list([Kind.TASK])
    version = await store.put(Kind.TASK, "a", b"1", ttl_s=60.0)
    assert await store.touch(Kind.TASK, "a", ttl_s=60.0)
    changes = store.watch(snapshot.cursor, snapshot.epoch)
    assert [change.key for change in await anext(changes)] == ["a"]
    await changes.aclose()
    lease = await store.acquire("x", "me", 5.0)
    assert lease is not None
    assert await store.renew(lease)
    assert await store.holders() == {"x": "me"}
    await store.release(lease)
    assert await store.delete(Kind.TASK, "a", expect=version)
    await store.close()
    unknown = opened(own_redis_server.url, password_file=file)
    assert not await is_let_in(unknown)
    await unknown.close()


async def test_a_password_is_changed_without_anybody_restarted(
    own_redis_server: Any, manage: Any, tmp_path: Path
) -> None:
    """The user has both for a while; the file is changed meanwhile; then the old one is taken away."""
    file = tmp_path / "password"
    file.write_text("old")
    await manage("ACL", "SETUSER", "infaas", "on", ">old", "~*", "+@all")
    store = opened(own_redis_server.url.replace("unix://", "unix://infaas@"), password_file=file)
    assert await is_let_in(store)
    await manage("ACL", "SETUSER", "infaas", ">new")
    file.write_text("new")
    await manage("ACL", "SETUSER", "infaas", "<old")
    await manage("CLIENT", "KILL", "USER", "infaas")
    await store.epoch()
    assert await is_let_in(store)
    file.unlink()
    await manage("CLIENT", "KILL", "USER", "infaas")
    with pytest.raises(UnavailableError, match="password_file"):
        await store.epoch()
    file.write_text("new")
    await store.epoch()
    await store.close()


@asynccontextmanager
async def behind_tls(path: Path, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A port that ends TLS in front of the server's socket, as a proxy does; the binary at hand may know none."""
    tasks: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs = await asyncio.open_unix_connection(str(path))
        for one in (copy(reader, theirs[1]), copy(theirs[0], writer)):
            tasks.add(asyncio.create_task(one))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*tasks)


async def test_over_tls_the_servers_certificate_is_checked(own_redis_server: Any, manage: Any, tmp_path: Path) -> None:
    await manage("CONFIG", "SET", "requirepass", SECRET)
    ours, others = Authority(tmp_path / "ca"), Authority(tmp_path / "another")
    issued = ours.issue("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.cert, issued.key)
    async with behind_tls(own_redis_server.state_dir / "redis.sock", context) as port:
        store = opened(f"rediss://127.0.0.1:{port}/0", ca_file=ours.file, password=SECRET)
        assert await is_let_in(store)
        await store.close()
        for url, ca in (
            (f"rediss://127.0.0.1:{port}/0", others.file),
            (f"rediss://127.0.0.1:{port}/0", None),
            (f"rediss://localhost:{port}/0", ours.file),
        ):
            store = opened(url, password=SECRET, **({} if ca is None else {"ca_file": ca}))
            with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
                await store.epoch()
            await store.close()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"password": "x"}, r"store\.password needs store\.redis_url"),
        ({"redis_url": "redis://:y5ecret@h", "password": "x"}, "has a password already"),
        ({"redis_url": "redis://h?password=y5ecret", "password": "x"}, "has a password already"),
        ({"redis_url": "redis://h", "password_file": "/nowhere"}, r"store\.password_file '/nowhere' cannot be read"),
        ({"redis_url": "redis://:y5ecret@h", "ca_file": "/nowhere"}, r"needs a rediss:// URL"),
        ({"redis_url": "rediss://h", "ca_file": "/nowhere"}, r"store\.ca_file '/nowhere' cannot be read"),
    ],
)
def test_what_cannot_be_a_credential_is_said_at_once_without_it(variables: dict[str, str], reason: str) -> None:
    environ = {f"INFAAS_STORE__{name.upper()}": value for name, value in variables.items()}
    with pytest.raises(SettingsError, match=reason) as error:
        open_store(load_settings(environ=environ))
    assert "5ecret" not in error.value.text
