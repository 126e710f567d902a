"""Memory that the two ends of a connection on one machine share, so that large tensors need not pass a socket.

Each end has a *pool* that it alone writes to, and a *window* on the pool of the other. A payload is copied into the
pool once and read where it lies, for as long as anybody holds a view of it; then its place is free again. That is said
in the memory itself: the first byte of a place is not zero while its reader needs it, and nobody has to send or to
wait for word of it.

The memory is a sealed memfd: it has no name that could be left behind, it is freed when both processes are gone however
they ended, and neither can make it smaller under the other's reads. The other end gets at it by `/proc/PID/fd/N`, where
the kernel says who the peer is (SO_PEERCRED, unix(7)), so nothing is taken on trust: the same user, a memfd, its seals,
and the key that the offer named.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import secrets
import socket
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infaas.rpc.hop.arena import GRAIN_BYTES, Arena

Buffer = bytes | memoryview
SHARED_FROM_BYTES = 2**16
"""Smaller payloads cost no more through the socket."""
SHARED_TO_BYTES = 16 * 2**20
"""Larger ones would hold up the event loop while they are copied; a socket takes them piece by piece."""
KEEP_BYTES = 4 * 2**20
"""What a pool that rests keeps of its memory."""
GIVE_BYTES = 16 * 2**20
"""What it gives back at a time: a millisecond's work for the system."""
KEY_BYTES = 16
_FIRST = GRAIN_BYTES
"""Before it is the key."""
_HEADER_BYTES = 64
"""Before each payload, so that it begins with a line of the cache, which is more than any runtime asks for."""
_LOOKED_AT = 8
"""Of the oldest places, each time one is taken."""
_ORDERED = frozenset(("x86_64", "AMD64"))
"""Processors on which no write overtakes the reads before it (Intel SDM, volume 3, 9.2.2), so that the byte which says
that a place was read need not be more than a byte."""
_CREDENTIALS = Struct("iII")
_SEALS = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0) | getattr(fcntl, "F_SEAL_SEAL", 0)


class SharedMemoryError(Exception):
    """Memory cannot be shared; what was to go through it can go through the socket."""


@dataclass(frozen=True, slots=True)
class Offer:
    """How a peer finds a pool: one of its descriptors, and what it will find there."""

    descriptor: int
    size_bytes: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Of a payload in a pool."""

    begin: int
    size_bytes: int


def is_worth_sharing(size_bytes: int) -> bool:
    return SHARED_FROM_BYTES <= size_bytes <= SHARED_TO_BYTES


class Pool:
    """Memory for payloads that the peer reads. Used on one thread; freed with the last view of it on either side."""

    def __init__(self, size_bytes: int) -> None:
        """Raises SharedMemoryError where there is no such memory."""
        if not hasattr(os, "memfd_create"):
            raise SharedMemoryError("this system has no memfd_create")
        if platform.machine() not in _ORDERED:
            raise SharedMemoryError(f"on {platform.machine()} a place could seem free before it was read to the end")
        size = -(-size_bytes // GRAIN_BYTES) * GRAIN_BYTES + _FIRST
        try:
            self._descriptor = os.memfd_create("infaas-hop", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise SharedMemoryError(f"no memory can be made to share: {error}") from error
        try:
            os.ftruncate(self._descriptor, size)
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self._map = mmap.mmap(self._descriptor, size)
        except (OSError, ValueError) as error:
            self.hide()
            raise SharedMemoryError(f"{size} bytes cannot be shared: {error}") from error
        self._memory = memoryview(self._map)
        self._arena = Arena(size - _FIRST)
        self._out: dict[int, None] = {}
        """Where places that its reader may still need begin, oldest first."""
        self._key = secrets.token_bytes(KEY_BYTES)
        self._memory[:KEY_BYTES] = self._key
        self._size = size
        self._put_before = 0
        self.payloads = 0
        """Put here so far."""

    def offer(self) -> Offer:
        """For the peer, until `hide`."""
        return Offer(self._descriptor, self._size, self._key)

    def hide(self) -> None:
        """Nobody else can find it from now on. May be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    @property
    def places(self) -> int:
        """Taken now, as far as is known."""
        return self._arena.places

    @property
    def reach_bytes(self) -> int:
        return self._arena.reach_bytes

    def put(self, segments: Sequence[Buffer], size_bytes: int) -> Place | None:
        """A copy of them, one after the other; None when there is no room now. Segments are flat bytes."""
        begin = self._take(_HEADER_BYTES + size_bytes)
        if begin is None:
            return None
        memory = self._memory
        memory[begin] = 1
        at = first = begin + _HEADER_BYTES
        for segment in segments:
            end = at + len(segment)
            memory[at:end] = segment
            at = end
        self._out[begin] = None
        self.payloads += 1
        return Place(first, size_bytes)

    def rest(self) -> None:
        """To be called now and then: a pool that nothing was put into since gives memory back that nobody needs."""
        was_used, self._put_before = self.payloads != self._put_before, self.payloads
        if was_used or self._arena.reach_bytes <= KEEP_BYTES:
            return
        self._reap(len(self._out))
        if not self._arena.places:
            reach = self._arena.reach_bytes
            begin = max(KEEP_BYTES, reach - GIVE_BYTES)
            self._map.madvise(mmap.MADV_REMOVE, _FIRST + begin, reach - begin)
            self._arena.forget(begin)

    def _take(self, size_bytes: int) -> int | None:
        self._reap(_LOOKED_AT)
        begin = self._arena.take(size_bytes)
        if begin is None and self._reap(len(self._out)):
            begin = self._arena.take(size_bytes)
        return None if begin is None else _FIRST + begin

    def _reap(self, count: int) -> int:
        """Of the oldest so many, those that their reader is done with; returns their number."""
        memory, out = self._memory, self._out
        done = [begin for begin in islice(out, count) if not memory[begin]]
        for begin in done:
            del out[begin]
            self._arena.give(begin - _FIRST)
        return len(done)


class Window:
    """What a peer put into its pool, read where it lies."""

    def __init__(self, offer: Offer, peer: int) -> None:
        """`peer`: its process. Raises SharedMemoryError when it has no such memory, or memory that is not safe."""
        self._map = _mapped(offer, f"/proc/{peer}/fd/{offer.descriptor}")
        self._memory = memoryview(self._map)
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self._size = offer.size_bytes
        self._read: dict[int, weakref.ref[Any]] = {}

    @property
    def places(self) -> int:
        """That are still read."""
        return len(self._read)

    def view(self, place: Place) -> memoryview:
        """Read-only. Its place is the peer's again when no view of it is left, on whichever thread the last one goes.
        Raises SharedMemoryError when nothing can lie there."""
        begin, end = place.begin, place.begin + place.size_bytes
        header = begin - _HEADER_BYTES
        if header < _FIRST or end > self._size or header % GRAIN_BYTES:
            raise SharedMemoryError(f"{place.size_bytes} bytes at {begin} of {self._size} that are shared")
        piece = self._bytes[begin:end]
        self._read[header] = weakref.ref(piece, partial(_release, self._read, self._memory, header))
        return piece.data.toreadonly()

    def close(self) -> None:
        """The peer has gone: nobody waits for a place any more. What is being read stays."""
        self._read.clear()


def _release(read: dict[int, weakref.ref[Any]], memory: memoryview, header: int, piece: weakref.ref[Any]) -> None:
    """Whoever read it last has let go of it. Its writer may write as soon as it sees this."""
    if read.get(header) is piece:
        del read[header]
    memory[header] = 0


def peer_of(connection: socket.socket) -> int:
    """The process at the other end of a unix socket. Raises SharedMemoryError when there is none that memory can be
    shared with: it is on another machine, in a container of its own, or another user's."""
    if connection.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        raise SharedMemoryError("the connection is not a unix socket")
    said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(said)
    if process <= 0:
        raise SharedMemoryError("the other end's process cannot be seen from here")
    if user != os.geteuid():
        raise SharedMemoryError(f"the other end is user {user}'s, this one is user {os.geteuid()}'s")
    return int(process)


def _mapped(offer: Offer, path: str) -> mmap.mmap:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SharedMemoryError(f"the other end's memory cannot be opened: {error}") from error
    try:
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise SharedMemoryError("the other end's memory could be made smaller under our reads")
        if os.fstat(descriptor).st_size != offer.size_bytes or offer.size_bytes <= _FIRST:
            raise SharedMemoryError("the other end's memory has another size than it said")
        shared = mmap.mmap(descriptor, offer.size_bytes)
    except (OSError, ValueError) as error:
        raise SharedMemoryError(f"what the other end offers is no memory to share: {error}") from error
    finally:
        os.close(descriptor)
    if not secrets.compare_digest(shared[:KEY_BYTES], offer.key):
        shared.close()
        raise SharedMemoryError("the other end's memory is not what it offered")
    return shared
