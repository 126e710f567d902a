"""A book in memory that several processes share: each writes its own file of it, all read all of them.

A file has no name; the master makes it, keeps it, and hands it to every process it starts. So rows outlive the process
that wrote them, whatever ended it: the next one in its place goes on with them, and no scrape ever sees a counter fall.
Counting is a store to memory; nothing is sent and nobody is asked.

A file is chunks of `CHUNK_BYTES`. The first eight bytes say how much of it is written, the next eight how often names
were taken away or given anew; then come rows, each with its key's length and its width (four bytes each), the key with
spaces behind it, and the numbers. A row never spans two chunks, and a key's length of zero says that the rest of a
chunk is empty. Rows never move. One that is forgotten is marked, and its place goes to the next of the same size. Who
reads needs no lock: lengths are written last, so that half a row is never seen, and whoever finds that names have
changed reads all of them again.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

from infaas.observe.book import Cells, Values

CHUNK_BYTES = 64 * 1024
_HEAD = struct.Struct("<QQ")
_ROW = struct.Struct("<II")
_WORD = 8
_KEY_BYTES = 32
"""Keys are as long as a multiple of this, so that the places of forgotten rows suit others."""
_FORGOTTEN = 1 << 31
"""In a key's length."""
_TRIES = 20
"""To read names that are being changed; that takes microseconds, and comes when a variant leaves or begins to serve."""


class NumbersFile:
    """One process's rows. `is_own` says that this process writes it; there must be no other that does."""

    def __init__(self, descriptor: int, *, is_own: bool) -> None:
        self._descriptor = descriptor
        self._access = mmap.ACCESS_WRITE if is_own else mmap.ACCESS_READ
        self._chunks: list[mmap.mmap] = []
        self._read_until = _HEAD.size
        self._edition = -1
        self._rows: dict[str, dict[Values, memoryview[float]]] = {}
        self._places: dict[tuple[str, Values], int] = {}
        self._free: dict[tuple[int, int], list[int]] = {}
        """Places of forgotten rows, by key's length and width. For who writes."""
        if is_own and os.fstat(descriptor).st_size == 0:
            os.ftruncate(descriptor, CHUNK_BYTES)
            _store(self._chunk(0), 0, _HEAD.pack(_HEAD.size, 0))
        self._read()
        if is_own:
            self._begin_edition()  # who was here before may have died before it said that it had

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

    def forget(self, series: str, is_kept: Callable[[Values], bool]) -> None:
        rows = self._rows.get(series, {})
        gone = [values for values in rows if not is_kept(values)]
        for values in gone:
            del rows[values]
            at = self._places.pop((series, values))
            chunk, place = self._chunk(at // CHUNK_BYTES), at % CHUNK_BYTES
            length, width = _ROW.unpack_from(chunk, place)
            _store(chunk, place, _ROW.pack(length | _FORGOTTEN, width))
            self._free.setdefault((length, width), []).append(at)
        if gone:
            self._begin_edition()

    def _begin_edition(self) -> None:
        """Names have changed: of rows that others may have read already."""
        self._edition += 1
        _store(self._chunk(0), 0, _HEAD.pack(self._read_until, self._edition))

    def _append(self, series: str, values: Values, width: int) -> memoryview[float]:
        key = json.dumps((series, *values)).encode()
        key = key.ljust(-(-len(key) // _KEY_BYTES) * _KEY_BYTES)
        size = _row_bytes(len(key), width)
        if free := self._free.get((len(key), width)):
            cells = self._write(free.pop(), key, width)
            self._begin_edition()
            return cells
        if size > CHUNK_BYTES - _HEAD.size:
            raise ValueError(f"a row of {width} numbers under {series!r} takes {size} bytes, more than a chunk has")
        at = self._read_until
        if at % CHUNK_BYTES + size > CHUNK_BYTES or at % CHUNK_BYTES == 0:
            at = self._begin_chunk(at)
        cells = self._write(at, key, width)
        self._read_until = at + size
        _store(self._chunk(0), 0, _HEAD.pack(self._read_until, self._edition))
        return cells

    def _write(self, at: int, key: bytes, width: int) -> memoryview[float]:
        """A row of zeros that is not read until its length is there."""
        chunk, place = self._chunk(at // CHUNK_BYTES), at % CHUNK_BYTES
        begin, end = place + _ROW.size, place + _row_bytes(len(key), width)
        chunk[begin:end] = key + bytes(end - begin - len(key))  # whoever was here, or died half-way
        _store(chunk, place, _ROW.pack(len(key), width))
        return self._note(at, key, width)

    def _begin_chunk(self, at: int) -> int:
        """Where the next chunk begins, which is there from now on; what is left of this one is marked as empty."""
        if at % CHUNK_BYTES:
            _store(self._chunk(at // CHUNK_BYTES), at % CHUNK_BYTES, _ROW.pack(0, 0))
        begin = -(-at // CHUNK_BYTES) * CHUNK_BYTES
        os.ftruncate(self._descriptor, max(os.fstat(self._descriptor).st_size, begin + CHUNK_BYTES))
        return begin

    def _read(self) -> None:
        """Take note of the rows that were added since."""
        if os.fstat(self._descriptor).st_size == 0:
            return  # its process has not begun
        for _ in range(_TRIES):
            used, edition = _HEAD.unpack_from(self._chunk(0), 0)
            if edition != self._edition:
                self._rows, self._places, self._free = {}, {}, {}
                self._edition, self._read_until = edition, _HEAD.size
            try:
                self._read_rows(used)
            except ValueError:  # half of one name and half of the next
                if _HEAD.unpack_from(self._chunk(0), 0)[1] == edition:
                    raise
            if _HEAD.unpack_from(self._chunk(0), 0)[1] == edition:
                return

    def _read_rows(self, used: int) -> None:
        """Raises ValueError for a key that is none."""
        while self._read_until < used:
            at = self._read_until
            chunk, place = self._chunk(at // CHUNK_BYTES), at % CHUNK_BYTES
            length, width = _ROW.unpack_from(chunk, place)
            if not length:
                self._read_until += CHUNK_BYTES - place
                continue
            is_forgotten, length = bool(length & _FORGOTTEN), length & ~_FORGOTTEN
            if is_forgotten:
                self._free.setdefault((length, width), []).append(at)
            else:
                self._note(at, chunk[place + _ROW.size : place + _ROW.size + length], width)
            self._read_until += _row_bytes(length, width)

    def _note(self, at: int, key: bytes, width: int) -> memoryview[float]:
        series, *values = json.loads(key)
        end = at % CHUNK_BYTES + _row_bytes(len(key), width)
        cells = memoryview(self._chunk(at // CHUNK_BYTES))[end - width * _WORD : end].cast("d")
        self._rows.setdefault(series, {})[tuple(values)] = cells
        self._places[series, tuple(values)] = at
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

    def forget(self, series: str, is_kept: Callable[[Values], bool]) -> None:
        self._own.forget(series, is_kept)

    def rows(self, series: str) -> Iterator[tuple[Values, Cells]]:
        for file in (self._own, *self._others):
            yield from file.rows(series)


def _store(chunk: mmap.mmap, place: int, packed: bytes) -> None:
    """In one go: `pack_into` clears what is there first, and others read meanwhile."""
    chunk[place : place + len(packed)] = packed


def _row_bytes(key_bytes: int, width: int) -> int:
    return -(-(_ROW.size + key_bytes) // _WORD) * _WORD + width * _WORD
