"""The live metadata store on Redis: what a cluster shares, and what `infaas up` keeps in its private server.

Each operation is one script (`infaas.store.scripts`), so it happens wholly or not at all. Nothing here waits without a
bound: an engine that is gone, stopped, full, read-only or still loading is an UnavailableError within seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from infaas.errors import SettingsError, UnavailableError
from infaas.store import keys, scripts
from infaas.store.base import UNFOLLOWED, Change, CursorLostError, Kind, Lease, Record, Snapshot
from infaas.store.checks import milliseconds, refusal

_POLL_MS = 400
"""How long a watcher lets Redis hold its question: the bound on noticing expiries and a new epoch."""
_GROUP = 500
_CONNECTIONS = 16
_ATTEMPTS = 3
_FINAL_WORDS = (
    "WRONGTYPE", "wrong kind of value", "WRONGPASS", "invalid username-password", "invalid password", "NOAUTH",
    "Authentication required", "without any password configured", "unauthenticated",
    "NOPERM", "no permissions", "unknown command",
)  # fmt: skip


class RedisStore:
    """One client of a shared store; used from one event loop. `namespace` keeps several systems in one Redis apart.

    Implements `MetadataStore`. Connections are made when needed and again after a loss. Operations that may be
    repeated without harm are tried three times with jitter when the connection breaks; `put` and `delete` are not,
    since a broken connection does not say whether they happened.
    """

    def __init__(
        self,
        url: str,
        namespace: str = "infaas",
        *,
        stream_length: int = 4096,
        command_timeout_s: float = 2.0,
        password: Callable[[], str | None] | None = None,
        ca_file: Path | None = None,
    ) -> None:
        """`password` is asked for each new connection; None: it is in the URL, if there is one. `ca_file`: whom the
        server's certificate must be signed by. Raises SettingsError for what cannot be a store."""
        self._keys = keys.all_keys(namespace)
        self._stream = keys.changes_key(namespace)
        self._stream_length = stream_length
        self._command_timeout_s = command_timeout_s
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=command_timeout_s,
                # Time is limited around whole operations below. The library's own limit on sending goes through
                # asyncio.wait_for, which loses a cancellation in Python 3.11: a task could then never be stopped.
                socket_timeout=None,
                socket_connect_timeout=None,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                decode_responses=False,
                **({} if ca_file is None else {"ssl_ca_certs": str(ca_file)}),
            )
        except (ValueError, TypeError) as error:
            raise SettingsError(f"store.redis_url is not a redis://, rediss:// or unix:// URL: {error}") from None
        if password is not None:
            # The library takes a name and a password, or somebody who knows both.
            known = pool.connection_kwargs
            known["credential_provider"] = _Credential(known.pop("username", None), password)
        self._redis: Redis = Redis(connection_pool=pool)
        self._where = _shown(pool.connection_kwargs)
        self._scripts: dict[str, AsyncScript] = {}
        self._is_closed = False

    async def epoch(self) -> str:
        return str((await self._run(scripts.EPOCH)).decode())

    async def get(self, kind: Kind, key: str) -> Record | None:
        found = await self._run(scripts.GET, kind.value, key)
        return None if found is None else Record(kind, key, found[0], int(found[1]))

    async def list(self, kinds: Sequence[Kind]) -> Snapshot:
        epoch, cursor, found = await self._run(scripts.LIST, *dict.fromkeys(kind.value for kind in kinds))
        records = [Record(Kind(kind.decode()), key.decode(), value, version) for kind, key, value, version in found]
        records.sort(key=lambda record: (record.kind.value, record.key))
        return Snapshot(tuple(records), cursor.decode(), epoch.decode())

    async def put(
        self,
        kind: Kind,
        key: str,
        value: bytes,
        *,
        expect: int | None = None,
        lease: Lease | None = None,
        ttl_s: float | None = None,
    ) -> int:
        ttl_ms = "" if ttl_s is None else milliseconds(ttl_s)
        answer = await self._run(
            scripts.PUT,
            kind.value,
            key,
            value,
            _or_empty(expect),
            ttl_ms,
            *_lease_arguments(lease),
            is_repeatable=False,
        )
        return _accepted(answer, kind, key, expect, lease)

    async def delete(self, kind: Kind, key: str, *, expect: int | None = None, lease: Lease | None = None) -> bool:
        answer = await self._run(
            scripts.DELETE, kind.value, key, _or_empty(expect), *_lease_arguments(lease), is_repeatable=False
        )
        return bool(_accepted(answer, kind, key, expect, lease))

    async def touch(self, kind: Kind, key: str, *, ttl_s: float) -> bool:
        return bool(await self._run(scripts.TOUCH, kind.value, key, milliseconds(ttl_s)))

    async def watch(self, cursor: str, epoch: str) -> AsyncGenerator[Sequence[Change], None]:
        """Waits in XREAD, which only says that there is something; what it is comes from a script that also checks the
        epoch, so that nothing of another epoch is ever taken for a continuation."""
        while not self._is_closed:
            try:
                answer = await self._run(scripts.READ, cursor, epoch, _GROUP)
                if answer[0] != b"ok":
                    raise CursorLostError(f"the store's stream does not continue at {cursor}: {answer[0].decode()}")
                entries = answer[1]
            except UnavailableError:
                if self._is_closed:
                    return
                raise
            if entries:
                cursor = entries[-1][0].decode()
            changes = [change for entry in entries if (change := _change(entry)) is not None]
            # An older program that shares the store writes down changes of every kind.
            yield [change for change in changes if change.kind not in UNFOLLOWED]
            if not entries:
                await self._wait_for_change(cursor)

    async def acquire(self, name: str, holder: str, ttl_s: float) -> Lease | None:
        fence = await self._run(scripts.ACQUIRE, name, holder, milliseconds(ttl_s))
        return None if fence is None else Lease(name, holder, int(fence), ttl_s)

    async def renew(self, lease: Lease) -> bool:
        return bool(
            await self._run(scripts.RENEW, lease.name, lease.holder, str(lease.fence), milliseconds(lease.ttl_s))
        )

    async def release(self, lease: Lease) -> None:
        await self._run(scripts.RELEASE, lease.name, lease.holder, str(lease.fence))

    async def holders(self) -> Mapping[str, str]:
        return {name.decode(): holder.decode() for name, holder in await self._run(scripts.HOLDERS)}

    async def close(self) -> None:
        """Ends every watch; idempotent. What an engine that stands still has not taken by then, it never gets."""
        self._is_closed = True
        with contextlib.suppress(TimeoutError):  # every connection is closing, whatever it still had to send
            async with asyncio.timeout(self._command_timeout_s):
                await self._redis.aclose(close_connection_pool=True)

    async def _wait_for_change(self, cursor: str) -> None:
        try:
            async with asyncio.timeout(self._command_timeout_s + _POLL_MS / 1e3):
                await self._redis.xread({self._stream: cursor}, count=1, block=_POLL_MS)
        except (RedisError, OSError, TimeoutError) as error:
            if not self._is_closed:
                raise self._unavailable(error) from error

    async def _run(self, text: str, *arguments: str | bytes | int, is_repeatable: bool = True) -> Any:
        if self._is_closed:
            raise UnavailableError(f"the store client for {self._where} was closed")
        script = self._scripts.get(text)
        if script is None:
            script = self._scripts[text] = self._redis.register_script(text)
        args = [secrets.token_hex(8), self._stream_length, *arguments]
        attempts = _ATTEMPTS if is_repeatable else 1
        while True:
            attempts -= 1
            try:
                async with asyncio.timeout(self._command_timeout_s):  # connecting included
                    return await script(keys=self._keys, args=args)
            except RedisConnectionError as error:
                if not attempts or self._is_closed:
                    raise self._unavailable(error) from error
                await asyncio.sleep(random.uniform(0.01, 0.1))
            except (RedisError, OSError, TimeoutError) as error:
                raise self._unavailable(error) from error

    def _unavailable(self, error: BaseException) -> UnavailableError:
        if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
            reason = f"no answer within {self._command_timeout_s:g} s"
        else:
            reason = str(error) or type(error).__name__
        text = f"the store at {self._where} is not available: {reason}"
        return UnavailableError(text, is_retryable=not _is_final(error))


class _Credential(CredentialProvider):
    """Asked by the library whenever it connects, so that a password may change while we run."""

    def __init__(self, user: str | None, password: Callable[[], str | None]) -> None:
        self._user = user
        self._password = password

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            password = self._password() or ""
        except SettingsError as error:  # its file is gone, or is being written
            raise RedisConnectionError(error.text) from error
        return (password,) if self._user is None else (self._user, password)


def _accepted(answer: Sequence[Any], kind: Kind, key: str, expect: int | None, lease: Lease | None) -> int:
    if answer[0] == b"ok":
        return int(answer[1])
    raise refusal(int(answer[1]) if answer[0] == b"version" else None, kind, key, expect, lease)


def _or_empty(number: int | None) -> str:
    return "" if number is None else str(number)


def _lease_arguments(lease: Lease | None) -> tuple[str, str, str]:
    return ("", "", "") if lease is None else (lease.name, lease.holder, str(lease.fence))


_KINDS = {kind.value.encode(): kind for kind in Kind}


def _change(entry: Sequence[Any]) -> Change | None:
    """None: of a kind that only a newer program knows."""
    cursor, flat = entry
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    kind = _KINDS.get(fields[b"kind"])
    if kind is None:
        return None
    return Change(
        kind,
        fields[b"key"].decode(),
        fields.get(b"value"),
        int(fields[b"version"]),
        cursor.decode(),
    )


def _is_final(error: BaseException) -> bool:
    """Whether the engine refuses for good: no trying again mends a password, a right or somebody else's key."""
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return True
    # The library may hand on such an answer as a mere connection error, without its code.
    return any(words in str(error) for words in _FINAL_WORDS)


def _shown(connection: Mapping[str, Any]) -> str:
    """Where the engine is, without a password."""
    if "path" in connection:
        return f"unix:{connection['path']}"
    return f"{connection.get('host', 'localhost')}:{connection.get('port', 6379)}"
