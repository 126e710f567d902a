"""What goes over the hop, byte by byte, without any socket.

Each side opens with a preface: six bytes that say what this is and two with the version of the protocol. Frames follow,
in both directions: two little-endian 32-bit lengths, a protobuf message (the head), and the bytes of its tensors (the
payload) one after the other in the order in which the message names them (`columns`). So a tensor is never copied into
a message or out of one. A frame with neither head nor payload says only that its sender lives. Where the two ends share
memory (`shared`), the second length may have its highest bit set: then the payload lies in the sender's pool, and what
follows the head is where, and how long it is, in two 64-bit numbers.

Whatever the version, the preface, `Hello` and `Refusal` (see the protocol's definition) keep their form. A controller
says the newest version that it speaks; the worker answers with the newest that both speak, and from then on that one is
spoken (ADR 33). Where there is none, whoever calls can be told why it is turned away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct

from infaas.rpc.hop.shared import Place, is_worth_sharing

MAGIC = b"INFaaS"
VERSION = 1
OLDEST_VERSION = 1
"""That is still spoken here. It stays one behind at least for as long as programs of the version before may be met."""
PREFACE_BYTES = 8
LIMIT_BYTES = 256 * 2**20
"""Of one frame, head and payload together."""
HELLO_LIMIT_BYTES = 2**14
"""Of a frame from somebody who has not shown a credential yet."""
SCRATCH_BYTES = 2**16
ALIVE = bytes(8)

_LENGTHS = Struct("<II")
_PREFACE = Struct("<6sH")
_PLACE = Struct("<QQ")
_ELSEWHERE = 2**31
"""In the second length: the payload is not here. No frame is so large."""
_ALIGNED = 16

Buffer = bytes | memoryview
Frame = tuple[bytes, memoryview]
"""Head and payload. The payload is nobody else's and stays as it is."""
Find = Callable[[Place], memoryview]
"""What lies at a place of the sender's pool. Raises FrameError when nothing can."""
_NOTHING = memoryview(b"")


class FrameError(Exception):
    """What came cannot be a frame of this protocol; nothing after it can be read."""


def preface(version: int = VERSION) -> bytes:
    return _PREFACE.pack(MAGIC, version)


def version_of(first: Buffer) -> int | None:
    """The peer's version, from its first `PREFACE_BYTES`; None when it speaks something else."""
    magic, version = _PREFACE.unpack_from(first)
    return version if magic == MAGIC else None


def agreed_version(version: int) -> int | None:
    """What is spoken with a peer whose newest is `version`; None when there is nothing that both speak."""
    agreed = min(version, VERSION)
    return agreed if agreed >= OLDEST_VERSION else None


def pack(head: bytes, segments: Sequence[Buffer] = ()) -> list[Buffer]:
    """A frame as the pieces to write, in order; nothing is copied. Segments are flat bytes. Raises FrameError when it
    is larger than a reader takes."""
    size = checked_size(head, segments)
    return [_LENGTHS.pack(len(head), size) + head, *segments]


def checked_size(head: bytes, segments: Sequence[Buffer]) -> int:
    """Of the payload. Raises FrameError when the frame would be larger than a reader takes."""
    size = sum(map(len, segments))
    if len(head) + size > LIMIT_BYTES:
        raise FrameError(f"a message of {len(head) + size} bytes; {LIMIT_BYTES} can be sent at once")
    return size


def pack_elsewhere(head: bytes, place: Place) -> list[Buffer]:
    """A frame whose payload lies in the sender's pool."""
    where = _PLACE.pack(place.begin, place.size_bytes)
    return [_LENGTHS.pack(len(head), _ELSEWHERE | _PLACE.size) + head + where]


def flat(data: Buffer) -> Buffer:
    """The same memory as bytes, one after the other."""
    if isinstance(data, memoryview) and (data.ndim != 1 or data.format != "B"):
        return data.cast("B") if data.nbytes else b""
    return data


class FrameReader:
    """Turns what a socket delivers into frames: `room` is where the next bytes go, `took` says how many came.

    Small frames pass through a scratch buffer, and their payload is copied out of it once. A frame that is larger than
    the scratch gets memory of its own, into which the socket writes. At most one such frame is held.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.find: Find | None = None
        """None: no memory is shared."""
        self.passed_by = 0
        """Large payloads that came here although they could have come through shared memory; whoever counts them takes
        them away."""
        self.is_holding_back = False
        self._scratch = bytearray(SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._begin = 0
        self._end = 0
        self._large: memoryview | None = None
        self._large_head = (0, 0)
        self._is_large_elsewhere = False
        self._filled = 0

    @property
    def is_between_frames(self) -> bool:
        """Whether nothing is left of what came."""
        return self._large is None and self._begin == self._end

    def room(self) -> memoryview:
        """Never empty; valid until the next call of `took`."""
        if self._large is not None:
            return self._large[self._filled :]
        return self._view[self._end :]

    def waiting(self) -> memoryview:
        """What came and is no frame yet, in the scratch; for whoever reads a preface."""
        return self._view[self._begin : self._end]

    def skip(self, count: int) -> None:
        self._begin += count

    def filled(self, count: int) -> None:
        """`count` bytes more are in `waiting`; they are not looked at yet."""
        self._end += count

    def took(self, count: int) -> list[Frame]:
        """The frames that are whole now, in order. Raises FrameError for one that is larger than the limit; nothing may
        be asked of the reader afterwards. Frames before such a one come alone, because they may change the limit: while
        `is_holding_back`, ask again."""
        self.is_holding_back = False
        if self._large is not None:
            return self._took_of_large(self._large, count)
        self._end += count
        frames: list[Frame] = []
        begin, end, view = self._begin, self._end, self._view
        need = 0
        while end - begin >= 8:
            head, payload = _LENGTHS.unpack_from(view, begin)
            need = 8 + head + payload
            is_here = need <= self.limit_bytes + 8
            if not is_here:
                if not self._is_elsewhere(head, payload):
                    if not frames:
                        text = f"a frame of {head + payload} bytes is announced; {self.limit_bytes} are allowed"
                        raise FrameError(text)
                    self.is_holding_back = True
                    need = 0
                    break
                payload = _PLACE.size
                need = 8 + head + payload
            if end - begin < need:
                break
            at = begin + 8 + head
            begin += need
            found = memoryview(bytes(view[at:begin])) if payload else _NOTHING
            frames.append((bytes(view[at - head : at]), found if is_here else self._found(found)))
            need = 0
        self._keep(begin, end, need)
        return frames

    def _is_elsewhere(self, head: int, payload: int) -> bool:
        """Whether these are the lengths of a frame whose payload lies in memory that is shared."""
        return self.find is not None and payload == _ELSEWHERE | _PLACE.size and head <= self.limit_bytes

    def _found(self, where: memoryview) -> memoryview:
        if self.find is None:
            raise FrameError("a payload lies in memory that is not shared")
        return self.find(Place(*_PLACE.unpack(where)))

    def _keep(self, begin: int, end: int, need: int) -> None:
        """Make room for the rest of a frame of `need` bytes (0: not known yet) of which a part is here."""
        if begin == end:
            begin = end = 0
        elif need > SCRATCH_BYTES:
            head, payload = _LENGTHS.unpack_from(self._view, begin)
            self._is_large_elsewhere = self._is_elsewhere(head, payload)
            pad = -head % _ALIGNED  # so that the payload lies as a runtime wants it
            self._large, self._large_head = memoryview(bytearray(pad + need - 8)), (pad, pad + head)
            self._filled = pad + end - begin - 8
            self._large[pad : self._filled] = self._view[begin + 8 : end]
            begin = end = 0
        elif begin + max(need, 8) > SCRATCH_BYTES:
            self._view[: end - begin] = bytes(self._view[begin:end])  # the two places may overlap
            begin, end = 0, end - begin
        self._begin, self._end = begin, end

    def _took_of_large(self, large: memoryview, count: int) -> list[Frame]:
        self._filled += count
        if self._filled < len(large):
            return []
        self._large = None
        begin, end = self._large_head
        head, payload = bytes(large[begin:end]), large[end:].toreadonly()
        if self._is_large_elsewhere:
            return [(head, self._found(payload))]
        self.passed_by += self.find is not None and is_worth_sharing(len(payload))
        return [(head, payload)]
