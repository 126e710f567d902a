"""A book in memory that several processes share: each writes its own file of it, all read all of them.

A file has no name; the master makes it, keeps it, and hands it to every process it starts. So rows outlive the process
that wrote them, whatever ended it: the next one in its place goes on with them, and no scrape ever sees a counter fall.
Counting is a store to memory; nothing is sent and nobody is asked.

A file is chunks of `CHUNK_BYTES`. The first eight bytes say how much of it is written; then come rows, each with its
key's length and its width (four bytes each), the key, padding to eight bytes, and the numbers. A row never spans two
chunks, and a key's length of zero says that the rest of a chunk is empty. Rows are never moved or taken away, so that
who reads one needs no lock; the length is written last, so that half a row is never seen.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Sequence

from infaas.observe.book import Cells, Values

CHUNK_BYTES = 64 * 1024
_USED = struct.Struct("<Q")
_ROW = struct.Struct("<II")
_WORD = 8


class NumbersFile:
    """One process's rows. `is_own` says that this process writes it; there must be no other that does."""

    def __init__(self, descriptor: int, *, is_own: bool) -> None:
        self._descriptor = descriptor
        self._access = mmap.ACCESS_WRITE if is_own else mmap.ACCESS_READ
        self._chunks: list[mmap.mmap] = []
        self._read_until = _WORD
        self._rows: dict[str, dict[Values, memoryview[float]]] = {}
        if is_own and os.fstat(descriptor).st_size == 0:
            os.ftruncate(descriptor, CHUNK_BYTES)
            _USED.pack_into(self._chunk(0), 0, _WORD)
        self._read()

    def cells(self, series: str, values: Values, width: int) -> Cells:
        """Raises ValueError for a row of another width, or one that fits into no chunk."""
        found = self._rows.get(series, {}).get(values)
        if found is None:
            found = self._append(series, values, width)
        if len(found) != width:
            raise ValueError(f"series {series!r} has rows of {len(found)} numbers, not {width}")
        return found

    def rows(self, series: str) -> Iterable[tuple[Values, Cells]]:
        self._read()
        return list(self._rows.get(series, {}).items())

    def _append(self, series: str, values: Values, width: int) -> memoryview[float]:
        key = json.dumps((series, *values)).encode()
        size = _row_bytes(len(key), width)
        if size > CHUNK_BYTES - _WORD:
            raise ValueError(f"a row of {width} numbers under {series!r} takes {size} bytes, more than a chunk has")
        at = self._read_until
        if at % CHUNK_BYTES + size > CHUNK_BYTES or at % CHUNK_BYTES == 0:
            at = self._begin_chunk(at)
        chunk, place = self._chunk(at // CHUNK_BYTES), at % CHUNK_BYTES
        chunk[place : place + size] = bytes(size)  # who was here before may have died half-way
        _ROW.pack_into(chunk, place, len(key), width)
        chunk[place + _ROW.size : place + _ROW.size + len(key)] = key
        self._read_until = at + size
        _USED.pack_into(self._chunk(0), 0, self._read_until)
        return self._note(key, chunk, place + size - width * _WORD, width)

    def _begin_chunk(self, at: int) -> int:
        """Where the next chunk begins, which is there from now on; what is left of this one is marked as empty."""
        if at % CHUNK_BYTES:
            _ROW.pack_into(self._chunk(at // CHUNK_BYTES), at % CHUNK_BYTES, 0, 0)
        begin = -(-at // CHUNK_BYTES) * CHUNK_BYTES
        os.ftruncate(self._descriptor, max(os.fstat(self._descriptor).st_size, begin + CHUNK_BYTES))
        return begin

    def _read(self) -> None:
        """Take note of the rows that were added since."""
        if os.fstat(self._descriptor).st_size == 0:
            return  # its process has not begun
        used = _USED.unpack_from(self._chunk(0), 0)[0]
        while self._read_until < used:
            chunk, place = self._chunk(self._read_until // CHUNK_BYTES), self._read_until % CHUNK_BYTES
            length, width = _ROW.unpack_from(chunk, place)
            if not length:
                self._read_until += CHUNK_BYTES - place
                continue
            size = _row_bytes(length, width)
            key = chunk[place + _ROW.size : place + _ROW.size + length]
            self._note(key, chunk, place + size - width * _WORD, width)
            self._read_until += size

    def _note(self, key: bytes, chunk: mmap.mmap, place: int, width: int) -> memoryview[float]:
        series, *values = json.loads(key)
        cells = memoryview(chunk)[place : place + width * _WORD].cast("d")
        self._rows.setdefault(series, {})[tuple(values)] = cells
        return cells

    def _chunk(self, number: int) -> mmap.mmap:
        while len(self._chunks) <= number:
            offset = len(self._chunks) * CHUNK_BYTES
            self._chunks.append(mmap.mmap(self._descriptor, CHUNK_BYTES, offset=offset, access=self._access))
        return self._chunks[number]


class SharedBook:
    """This process's rows and those of the others. Lives as long as the process."""

    def __init__(self, own: int, others: Sequence[int]) -> None:
        """Descriptors of the files."""
        self._own = NumbersFile(own, is_own=True)
        self._others = [NumbersFile(descriptor, is_own=False) for descriptor in others]

    def cells(self, series: str, values: Values, width: int) -> Cells:
        return self._own.cells(series, values, width)

    def rows(self, series: str) -> Iterator[tuple[Values, Cells]]:
        for file in (self._own, *self._others):
            yield from file.rows(series)


def _row_bytes(key_bytes: int, width: int) -> int:
    return -(-(_ROW.size + key_bytes) // _WORD) * _WORD + width * _WORD
