"""What each of several processes says of itself now, for the others to read: a note is replaced whole, or torn up.

Notes are short-lived where numbers stay: the master tears up the note of a process that died, and what it had in
flight or in its queues no longer counts from that moment on.
"""

from __future__ import annotations

import os
import struct
import zlib

_HEAD = struct.Struct("<II")
_TRIES = 20
"""A note that is being replaced cannot be read; writing one takes microseconds."""


class Note:
    """A file without a name that one process writes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: bytes) -> None:
        os.pwrite(self._descriptor, _HEAD.pack(len(text), zlib.crc32(text)) + text, 0)

    def read(self) -> bytes | None:
        """None: there is none, or it is being replaced all the time."""
        for _ in range(_TRIES):
            size = os.fstat(self._descriptor).st_size
            data = os.pread(self._descriptor, size, 0)
            if len(data) < _HEAD.size:
                return None
            length, check = _HEAD.unpack_from(data)
            text = data[_HEAD.size : _HEAD.size + length]
            if len(text) == length and zlib.crc32(text) == check:
                return text
        return None

    def tear_up(self) -> None:
        """For the master, once the process is gone."""
        os.ftruncate(self._descriptor, 0)
