"""Which way an HTTP request goes: the fast one, from the parser to the service without an ASGI cycle, or the ordinary.

The fast way is for queries in their usual form. Whatever is out of the ordinary in how a request is framed or encoded
keeps to the way that knows every form. What a header says is read once and remembered: clients send the same one again
and again, but for its ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from infaas.domain.query import Requirements
from infaas.domain.task import Task, TaskDefaults
from infaas.rpc.requirements import PREFIX
from infaas_controller.api.compression import coding_of
from infaas_controller.api.headers import REQUEST_ID, TRACEPARENT, TRACESTATE
from infaas_controller.api.http_known import KnownBody
from infaas_controller.api.http_turned import TurnedAway
from infaas_controller.decide.shed import Shed

RawFields = Sequence[tuple[bytes, bytes]]
"""Header fields as they came, names in lower case."""

HEADER_LENGTH = "inference-header-content-length"
FAST_BODY_BYTES = 1 << 20
"""More is read by the ordinary way, which has its bounds looked at while it comes."""
HEADS_KEPT = 1_024
KEPT_HEAD_BYTES = 2_048
HEAD_END = b"\r\n\r\n"

_TARGET = re.compile(rb"/v2/models/([A-Za-z0-9._~-]{1,128})(?:/versions/([A-Za-z0-9]{1,9}))?/infer")
_LENGTH = re.compile(rb"[0-9]{1,9}")
_UNUSUAL = frozenset((b"expect", b"transfer-encoding", b"content-encoding", b"upgrade", b"http2-settings"))
_WANTED = frozenset(
    name.encode()
    for name in (
        "accept-encoding",
        "authorization",
        "content-length",
        "content-encoding",
        HEADER_LENGTH,
        REQUEST_ID,
        TRACEPARENT,
        TRACESTATE,
    )
)
_OF_ONE_QUERY = frozenset(name.encode() for name in (REQUEST_ID, TRACEPARENT, TRACESTATE))
_PREFIX = PREFIX.encode()


class Head:
    """What the header of a query says, but for what is its own alone. Shared by every query that sends the same."""

    __slots__ = (
        "_defaults", "_requirements", "body_bytes", "fields", "handle", "is_large_for", "known", "lessons", "opened",
        "opened_in", "opened_turn", "probes_until", "shed", "shed_count", "shed_told", "shed_turn", "turned", "version",
    )  # fmt: skip

    def __init__(self, handle: str, version: str, fields: dict[str, str], body_bytes: int) -> None:
        self.handle = handle
        self.version = version
        """`""` when it names none."""
        self.fields = fields
        """As `read_fields` found them, without those of a single query; not to be changed."""
        self.body_bytes = body_bytes
        self.known: KnownBody | None = None
        """What the last query under this head taught."""
        self.lessons = 0
        """How many have taught."""
        self.is_large_for: Task | None = None
        """The task of which an answer to such a query may be too large for the loop."""
        self.opened: tuple[Task, int | None] | None = None
        """What was found for it, its credential being good, in the view of the cluster of that number."""
        self.opened_in = 0
        self.opened_turn = -1
        """The turn of the loop in which that was looked at last."""
        self.turned: TurnedAway | None = None
        """What the last query like `known` was told, if it was turned away."""
        self.probes_until = 0.0
        """Until then each query is decided on by itself: the first that is refused speaks for those behind it."""
        self.shed: Shed | None = None
        """While turns of the loop are long, or were lately (`http_shedding`, whose are the next three as well)."""
        self.shed_turn = -1
        self.shed_told: TurnedAway | None = None
        self.shed_count = 0
        """Who were told so, and are not counted yet."""
        self._defaults: TaskDefaults | None = None
        self._requirements: Requirements | None = None

    def known_requirements(self, defaults: TaskDefaults) -> Requirements | None:
        """Of a query whose body states none, once they were read; while the task's defaults are the same object."""
        return self._requirements if self._defaults is defaults else None

    def remember(self, defaults: TaskDefaults, requirements: Requirements) -> None:
        self._defaults, self._requirements = defaults, requirements


def read_fields(raw: RawFields) -> dict[str, str]:
    """Those that mean something to a query; a name sent twice is joined, as HTTP says."""
    found: dict[str, str] = {}
    for name, value in raw:
        if name in _WANTED or name.startswith(_PREFIX):
            key, text = name.decode("latin-1"), value.decode("latin-1")
            found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def fast_head(target: bytes, raw: RawFields) -> Head | None:
    """Of a `POST` in HTTP/1.1; None: it goes the ordinary way."""
    match = _TARGET.fullmatch(target)
    if match is None:
        return None
    length: bytes | None = None
    for name, value in raw:
        if name in _UNUSUAL or (name == b"content-length" and length is not None):
            return None
        if name == b"content-length":
            length = value
    if length is None or not _LENGTH.fullmatch(length) or int(length) > FAST_BODY_BYTES:
        return None
    fields = read_fields(raw)
    if coding_of(fields.get("accept-encoding")) is not None:
        return None
    handle, version = match.groups()
    return Head(handle.decode("ascii"), "" if version is None else version.decode("ascii"), fields, int(length))


class Heads:
    """`fast_head` with memory, bounded in number and size."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Head] = {}
        self._as_sent: dict[bytes, Head] = {}
        """By the bytes on the wire, up to the header's end."""
        self._last: tuple[bytes, Head] | None = None
        """Of those, the one that came last: the next is nearly always the same."""

    @property
    def kept(self) -> int:
        return len(self._known) + len(self._as_sent)

    def as_sent(self, data: bytes) -> tuple[Head, int] | None:
        """Of a piece that is one whole request with a header that was parsed before: its head, and where its body
        begins. The same bytes mean the same again, so nothing is parsed."""
        last = self._last
        if last is not None and data.startswith(last[0]):
            begin, head = len(last[0]), last[1]
        else:
            begin = data.find(HEAD_END) + len(HEAD_END)
            sent = data[:begin]
            found = self._as_sent.get(sent)
            if found is None:
                return None
            head, self._last = found, (sent, found)
        return (head, begin) if len(data) - begin == head.body_bytes else None

    def remember(self, data: bytes, head: Head) -> None:
        """`data` is one whole request of this head and nothing else, without a field that is of a single query."""
        begin = data.find(HEAD_END) + len(HEAD_END)
        if begin > KEPT_HEAD_BYTES or len(data) - begin != head.body_bytes:
            return
        if len(self._as_sent) >= HEADS_KEPT:
            self._as_sent.clear()
        self._as_sent[data[:begin]] = head
        self._last = None

    def of(self, target: bytes, raw: RawFields) -> tuple[Head, dict[str, str]] | None:
        """The head, and the fields of this request: the head's own unless it sends what is of one query."""
        found = self._known.get((target, *raw))
        if found is not None:
            return found, found.fields
        common = [field for field in raw if field[0] not in _OF_ONE_QUERY]
        if len(common) == len(raw):
            head = self._new(target, raw)
            return None if head is None else (head, head.fields)
        head = self._known.get((target, *common)) or self._new(target, common)
        return None if head is None else (head, read_fields(raw))

    def _new(self, target: bytes, raw: RawFields) -> Head | None:
        head = fast_head(target, raw)
        if head is not None and len(target) + sum(len(name) + len(value) for name, value in raw) <= KEPT_HEAD_BYTES:
            if len(self._known) >= HEADS_KEPT:
                self._known.clear()
            self._known[(target, *raw)] = head
        return head
