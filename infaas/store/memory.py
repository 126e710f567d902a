"""The store's contract in one process: for tests, for the simulator, and as the model that Redis is checked against."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

from infaas.clock import Clock
from infaas.errors import UnavailableError
from infaas.store.base import UNFOLLOWED, Change, CursorLostError, Kind, Lease, Record, Snapshot
from infaas.store.checks import milliseconds, refusal
from infaas.store.scripts import FORGET_VERSIONS_AFTER_MS

_POLL_S = 0.25
"""A watcher looks for expiries this often in real time, since a manual clock wakes nobody."""
_Name = tuple[Kind, str]


@dataclass(slots=True)
class _Held:
    holder: str
    fence: int
    ends: float


class MemoryStore:
    """Implements `MetadataStore`; every client of it shares the object. Its clock decides about expiry."""

    def __init__(self, clock: Clock, *, stream_length: int = 4096) -> None:
        self._clock = clock
        self._stream_length = stream_length
        self._is_closed = False
        self._watchers: set[asyncio.Event] = set()
        self._wipe()

    def clear(self) -> None:
        """Lose everything, as an engine does that was emptied: the next use makes another epoch."""
        self._wipe()
        self._wake()

    async def epoch(self) -> str:
        self._sweep()
        return self._epoch

    async def get(self, kind: Kind, key: str) -> Record | None:
        self._sweep()
        value = self._values.get((kind, key))
        return None if value is None else Record(kind, key, value, self._versions[kind, key])

    async def list(self, kinds: Sequence[Kind]) -> Snapshot:
        self._sweep()
        records = [
            Record(kind, key, value, self._versions[kind, key])
            for (kind, key), value in self._values.items()
            if kind in kinds
        ]
        records.sort(key=lambda record: (record.kind.value, record.key))
        return Snapshot(tuple(records), str(self._sequence), self._epoch)

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
        ttl_ms = None if ttl_s is None else milliseconds(ttl_s)
        now = self._sweep()
        self._check(kind, key, expect, lease, now)
        name = (kind, key)
        self._values[name] = value
        self._gone.pop(name, None)
        if ttl_ms is None:
            self._expiry.pop(name, None)
        else:
            self._expiry[name] = now + ttl_ms
        version = self._versions[name] = self._versions.get(name, 0) + 1
        self._append(name, value, version)
        return version

    async def delete(self, kind: Kind, key: str, *, expect: int | None = None, lease: Lease | None = None) -> bool:
        now = self._sweep()
        if (kind, key) not in self._values:
            self._check(kind, key, None, lease, now)
            return False
        self._check(kind, key, expect, lease, now)
        self._remove((kind, key), now)
        return True

    async def touch(self, kind: Kind, key: str, *, ttl_s: float) -> bool:
        ttl_ms = milliseconds(ttl_s)
        now = self._sweep()
        if (kind, key) not in self._values:
            return False
        self._expiry[kind, key] = now + ttl_ms
        return True

    async def watch(self, cursor: str, epoch: str) -> AsyncGenerator[Sequence[Change], None]:
        position = int(cursor)
        signal = asyncio.Event()
        self._watchers.add(signal)
        try:
            while not self._is_closed:
                signal.clear()
                now = self._sweep()
                group = self._after(position, epoch)
                position += len(group)
                yield group
                if not group:
                    await self._wait(signal, now)
        finally:
            self._watchers.discard(signal)

    async def acquire(self, name: str, holder: str, ttl_s: float) -> Lease | None:
        ttl_ms = milliseconds(ttl_s)
        now = self._sweep()
        held = self._leases.get(name)
        if held is None or held.ends <= now:
            fence = max(int(self._clock.wall() * 1e3), self._fences.get(name, 0) + 1)
            self._fences[name] = fence
            held = self._leases[name] = _Held(holder, fence, now)
        elif held.holder != holder:
            return None
        held.ends = now + ttl_ms
        return Lease(name, holder, held.fence, ttl_s)

    async def renew(self, lease: Lease) -> bool:
        now = self._sweep()
        if not self._holds(lease, now):
            return False
        self._leases[lease.name].ends = now + milliseconds(lease.ttl_s)
        return True

    async def release(self, lease: Lease) -> None:
        if self._holds(lease, self._sweep()):
            del self._leases[lease.name]

    async def holders(self) -> Mapping[str, str]:
        now = self._sweep()
        return {name: held.holder for name, held in self._leases.items() if held.ends > now}

    async def close(self) -> None:
        self._is_closed = True
        self._wake()

    def _wipe(self) -> None:
        self._epoch = secrets.token_hex(8)
        self._values: dict[_Name, bytes] = {}
        self._versions: dict[_Name, int] = {}
        self._expiry: dict[_Name, float] = {}
        self._gone: dict[_Name, float] = {}
        self._changes: deque[Change] = deque(maxlen=self._stream_length)
        self._sequence = 0
        self._leases: dict[str, _Held] = {}
        # Fences survive: in Redis they start at the clock, which does not go back either.
        self._fences: dict[str, int] = getattr(self, "_fences", {})

    def _sweep(self) -> float:
        """Remove what is due, in the order it fell due; returns the time in milliseconds."""
        if self._is_closed:
            raise UnavailableError("the store in memory was closed")
        now = self._clock.now() * 1e3
        due = sorted((ends, name) for name, ends in self._expiry.items() if ends <= now)
        for _, name in due:
            self._remove(name, now)
        forgotten = [name for name, since in self._gone.items() if since <= now - FORGET_VERSIONS_AFTER_MS]
        for name in forgotten:
            del self._gone[name], self._versions[name]
        return now

    def _remove(self, name: _Name, now: float) -> None:
        del self._values[name]
        self._expiry.pop(name, None)
        self._gone[name] = now
        self._versions[name] += 1
        self._append(name, None, self._versions[name])

    def _append(self, name: _Name, value: bytes | None, version: int) -> None:
        if name[0] in UNFOLLOWED:
            return
        self._sequence += 1
        self._changes.append(Change(*name, value, version, str(self._sequence)))
        self._wake()

    def _wake(self) -> None:
        for signal in self._watchers:
            signal.set()

    def _check(self, kind: Kind, key: str, expect: int | None, lease: Lease | None, now: float) -> None:
        if lease is not None and not self._holds(lease, now):
            raise refusal(None, kind, key, expect, lease)
        if expect is None:
            return
        version = self._versions[kind, key] if (kind, key) in self._values else 0
        if version != expect:
            raise refusal(version, kind, key, expect, lease)

    def _holds(self, lease: Lease, now: float) -> bool:
        held = self._leases.get(lease.name)
        return held is not None and held.ends > now and (held.holder, held.fence) == (lease.holder, lease.fence)

    def _after(self, position: int, epoch: str) -> Sequence[Change]:
        if epoch != self._epoch:
            raise CursorLostError("the store has another epoch")
        oldest = self._sequence - len(self._changes)
        if not oldest <= position <= self._sequence:
            raise CursorLostError(f"the stream holds {oldest + 1} to {self._sequence}, the cursor is {position}")
        return tuple(itertools.islice(self._changes, position - oldest, None))

    async def _wait(self, signal: asyncio.Event, now: float) -> None:
        left_s = min((ends - now for ends in self._expiry.values()), default=_POLL_S * 1e3) / 1e3
        try:
            async with asyncio.timeout(min(left_s, _POLL_S)):
                await signal.wait()
        except TimeoutError:
            return
