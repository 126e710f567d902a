"""What the calls and messages of a client have in common, read once: `http_way`'s part over gRPC.

Metadata that came before mean the same again, but for what is of a single call. A message that says the same as one
before is recognised by its bytes (`grpc_known`): nothing of it is parsed.
"""

from __future__ import annotations

from collections.abc import Sequence

from infaas.rpc.requirements import PREFIX
from infaas_controller.api.grpc_known import Cut, KnownMessage
from infaas_controller.api.grpc_turned import TurnedCall
from infaas_controller.api.headers import REQUEST_ID, TRACEPARENT, TRACESTATE

Metadata = Sequence[tuple[str, str | bytes]]

HEADS_KEPT = 1_024
KEPT_HEAD_BYTES = 2_048
FORMS_KEPT = 1_024

_OF_ONE_CALL = frozenset((REQUEST_ID, TRACEPARENT, TRACESTATE))
_AUTHORIZATION = "authorization"


class CallHead:
    """What the metadata of a call say, but for what is its own alone. Shared by every call that sends the same."""

    __slots__ = ("fields",)

    def __init__(self, fields: dict[str, str]) -> None:
        self.fields = fields
        """As `read_metadata` found them, without those of a single call; not to be changed."""


class Form:
    """A message that was a good query, and what the last like it was told if it was turned away."""

    __slots__ = ("known", "turned", "version")

    def __init__(self, version: int | None, known: KnownMessage) -> None:
        self.version = version
        self.known = known
        self.turned: TurnedCall | None = None


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
        """Of a message that is like one before."""
        form = self._forms.get((head, begun.name, len(data) - begun.begin, has_deadline))
        return form if form is not None and form.known.inputs.suits(data, begun.begin) else None

    def remember(self, head: CallHead, begun: Cut, data: bytes, form: Form, *, has_deadline: bool) -> Form | None:
        """The form of this message; what is returned was remembered instead until now."""
        if len(self._forms) >= FORMS_KEPT:
            self._forms.clear()
        key = head, begun.name, len(data) - begun.begin, has_deadline
        before = self._forms.get(key)
        self._forms[key] = form
        return before
