"""What the calls and messages of a client have in common, read once: `http_way`'s and `known`'s part over gRPC.

Metadata that came before mean the same again, but for what is of a single call. A message that says the same as one
before, but for its id and its tensors' bytes, is recognised by its bytes (`known`): nothing of it is parsed. Clients
number their queries, so the id is cut out. All libraries write the fields of a message in the order of their numbers,
which is the only order that is recognised here; anything else is read by the generated class, as is the first of each
form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from google.protobuf.message import DecodeError

from infaas.domain.query import Query, Requirements
from infaas.domain.task import Task
from infaas.rpc.fields import outermost, tag_of
from infaas.rpc.requirements import PREFIX
from infaas.rpc.tensors import InferRequest
from infaas.rpc.tensors_grpc import RAW
from infaas_controller.api.headers import REQUEST_ID, TRACEPARENT, TRACESTATE
from infaas_controller.api.known import KNOWN_BYTES, Known, Span, known

Metadata = Sequence[tuple[str, str | bytes]]

HEADS_KEPT = 1_024
KEPT_HEAD_BYTES = 2_048
FORMS_KEPT = 1_024

_OF_ONE_CALL = frozenset((REQUEST_ID, TRACEPARENT, TRACESTATE))
_AUTHORIZATION = "authorization"
_NAME, _VERSION, _ID = 1, 2, 3
_NAME_TAG, _VERSION_TAG, _ID_TAG = tag_of(_NAME), tag_of(_VERSION), tag_of(_ID)
_SHORT = 0x80


class CallHead:
    """What the metadata of a call say, but for what is its own alone. Shared by every call that sends the same."""

    __slots__ = ("fields",)

    def __init__(self, fields: dict[str, str]) -> None:
        self.fields = fields
        """As `read_metadata` found them, without those of a single call; not to be changed."""


class Form(NamedTuple):
    """A message that was a good query."""

    handle: str
    version: int | None
    known: Known
    """Of what comes behind the id."""


class Cut(NamedTuple):
    """A message in two: what names the model, and all the rest, from `begin` on; between them the query's id."""

    name: bytes
    id: str
    begin: int


def read_metadata(metadata: Metadata) -> dict[str, str]:
    """Those that mean something to a query, as REST's headers are read: a key sent twice is joined. No key of ours is
    binary: one that pretends to be is kept for its name, which is refused."""
    found: dict[str, str] = {}
    for key, value in metadata:
        if not key.startswith(PREFIX) and key != _AUTHORIZATION and key not in _OF_ONE_CALL:
            continue
        if isinstance(value, str):
            found[key] = f"{found[key]}, {value}" if key in found else value
        elif key.startswith(PREFIX):
            found[key] = ""
    return found


def cut(data: bytes) -> Cut | None:
    """None for a message that does not begin as usual; what it returns for one that is broken further on means nothing
    before the rest was compared."""
    try:
        if data[0] != _NAME_TAG or data[1] >= _SHORT:
            return None
        at = 2 + data[1]
        if data[at] == _VERSION_TAG:
            if data[at + 1] >= _SHORT:
                return None
            at += 2 + data[at + 1]
        if data[at] != _ID_TAG:
            return Cut(data[:at], "", at)
        begin = at + 2 + data[at + 1]
        if data[at + 1] >= _SHORT or begin > len(data):
            return None
        return Cut(data[:at], data[at + 2 : begin].decode(), begin)
    except (IndexError, UnicodeDecodeError):
        return None


class Calls:
    """Remembers heads and forms, bounded in number and size."""

    def __init__(self) -> None:
        self._as_sent: dict[tuple[tuple[str, str | bytes], ...], CallHead] = {}
        self._heads: dict[tuple[tuple[str, str], ...], CallHead] = {}
        self._forms: dict[tuple[CallHead, bytes, int, bool], Form] = {}

    @property
    def kept(self) -> tuple[int, int, int]:
        return len(self._as_sent), len(self._heads), len(self._forms)

    def head_of(self, metadata: Metadata | None) -> tuple[CallHead, dict[str, str]]:
        """The head, and the fields of this call: the head's own unless it sends what is of one call."""
        sent = tuple(metadata or ())
        head = self._as_sent.get(sent)
        if head is not None:
            return head, head.fields
        fields = read_metadata(sent)
        common = {key: value for key, value in fields.items() if key not in _OF_ONE_CALL}
        head = self._head(common)
        if len(common) != len(fields):
            return head, fields
        if sum([len(key) + len(value) for key, value in sent]) <= KEPT_HEAD_BYTES:
            if len(self._as_sent) >= HEADS_KEPT:
                self._as_sent.clear()
            self._as_sent[sent] = head
        return head, head.fields

    def _head(self, fields: dict[str, str]) -> CallHead:
        key = tuple(fields.items())
        head = self._heads.get(key)
        if head is None:
            head = CallHead(fields)
            if sum([len(name) + len(text) for name, text in key]) <= KEPT_HEAD_BYTES:
                if len(self._heads) >= HEADS_KEPT:
                    self._heads.clear()
                self._heads[key] = head
        return head

    def form_of(self, head: CallHead, begun: Cut, data: bytes, *, has_deadline: bool) -> Form | None:
        """Of messages as long as this one; whether it is like them is still to be asked."""
        return self._forms.get((head, begun.name, len(data) - begun.begin, has_deadline))

    def learn(
        self,
        head: CallHead,
        begun: Cut,
        data: bytes,
        task: Task,
        request: InferRequest,
        query: Query,
        wanted: Requirements,
        *,
        has_deadline: bool,
    ) -> None:
        """From a good query."""
        spans = raw_spans(data, begun.begin)
        if spans is None or len(spans) != len(request.inputs) or len(begun.name) > KNOWN_BYTES:
            return
        rest = data[begun.begin :]
        nameless = replace(request, id="")
        found = known(task, rest, spans, nameless, query, wanted)
        if found is None:
            return
        if len(self._forms) >= FORMS_KEPT:
            self._forms.clear()
        key = head, begun.name, len(rest), has_deadline
        self._forms[key] = Form(query.handle, query.version, found)


def raw_spans(data: bytes, begin: int) -> list[Span] | None:
    """Where the raw contents lie behind the id, counted from `begin`; None where the message is not in the usual order,
    so that what names it, or its id, might be said again. `data` is a message."""
    spans: list[Span] = []
    try:
        for field in outermost(data):
            if field.number in (_NAME, _VERSION, _ID):
                if field.end > begin:
                    return None
            elif field.begin < begin:
                return None
            elif field.number == RAW:
                spans.append((field.value - begin, field.end - begin))
    except DecodeError:
        return None  # it has a form that only the generated class knows
    return spans
