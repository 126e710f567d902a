"""What answers to queries that differ in nothing but values have in common: all but their ids, times and data.

A form is cut out of a whole answer that the ordinary steps wrote, so that it says nothing in words of its own. Where
that answer cannot be cut in the expected places (text that is not ASCII, say) there is no form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from infaas.domain.ids import DecisionId
from infaas.domain.tensor import Tensor
from infaas.errors import InfaasError
from infaas.rpc.hop.columns import Column
from infaas.rpc.tensors_json import encode_data, encode_rows
from infaas_controller.api.headers import Caller
from infaas_controller.ports import Answer, Outcome, Ran

Buffer = bytes | memoryview
FORMED_BYTES = 4 * 1024
"""Of an answer, numbers in JSON reckoned with as many as they may be. All answers of a batch are written before the
first is sent: what is larger is worth its own steps, and may be worth another way."""
_NUMBER_BYTES = 25
"""Of a number in JSON, with what stands between it and the next."""

_REQUEST_ID, _DECISION_ID, _DATA = "r-form-7f3a9c", "d-form-7f3a9c", '"data-form-7f3a9c"'
_QUEUE_S, _RUN_S, _TOTAL_S = 111_111.111111, 222_222.222222, 333_333.333333
_TIMES = [f"{seconds * 1e3:.3f}" for seconds in (_QUEUE_S, _QUEUE_S, _RUN_S, _TOTAL_S)]
_IN_HEAD = [_REQUEST_ID, _DECISION_ID, *_TIMES]
_HOLE = re.compile("(" + "|".join(map(re.escape, sorted({*_IN_HEAD, _DATA}))) + ")")
_SIZES = re.compile(r"(inference-header-content-length: )?(?(1)\d+\r\n)content-length: \d+\r\n\r\n")


class Texts:
    """What goes in JSON of all answers of a batch: of an output that is asked for so, all are written when the first
    is, which costs little more than that one where most are asked for so."""

    __slots__ = ("_columns", "_count", "_rows")

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        items = columns[0].items if columns else ()
        self._count = len(items) if len(set(items)) == 1 else 0
        """0: the answers are not of one size."""
        self._rows: dict[int, Sequence[bytes] | None] = {}

    def of(self, at: int, place: int) -> bytes:
        """An output of the query at that place. Raises InfaasError for data that JSON has no form for."""
        column = self._columns[at]
        if at not in self._rows:
            self._rows[at] = encode_rows(column.datatype, column.data, self._count)
        rows = self._rows[at]
        if rows is not None:
            return rows[place]
        return encode_data(Tensor(column.name, column.datatype, *column.part(place)))


class Writer(Protocol):
    """Writes whole answers to one query by the ordinary steps."""

    def outputs(self, answer: Answer) -> Sequence[tuple[Tensor, bool]]:
        """Those that were asked for, in order, each with whether it goes in binary. Raises InfaasError."""

    def written(self, caller: Caller, answer: Answer, data: Mapping[str, bytes]) -> Sequence[Buffer]:
        """Header and body; `data` holds the JSON of outputs that do not go in binary. Raises InfaasError."""


class Form:
    """Of usual answers (`ports.Batch`) to queries of so many items each, who asked for the same outputs."""

    __slots__ = (
        "_binary",
        "_end",
        "_has_binary",
        "_head",
        "_id_bytes",
        "_json",
        "_outputs",
        "_own_bytes",
        "_run",
        "_tail",
        "_type",
    )

    def __init__(self, literals: Sequence[str], outputs: Sequence[tuple[int, bool]], binary: int) -> None:
        """`literals`: the text round the holes; `outputs`: the place of each among the columns, and whether it goes in
        binary; `binary`: how many bytes go so."""
        sizes = _SIZES.search(literals[6])
        if sizes is None:
            raise ValueError("the answer is not one of a connection that goes on")
        self._head = literals[:6]
        self._type = literals[6][: sizes.start()]
        self._json = (literals[6][sizes.end() :], *literals[7:-1])
        """The body's text up to each of its holes."""
        self._end = literals[-1]
        self._own_bytes = sum(map(len, self._json)) + len(self._end)
        self._outputs = outputs
        self._has_binary = any(is_binary for _, is_binary in outputs)
        self._binary = binary
        self._run = ""
        self._tail, self._id_bytes = "", 0
        """What stands between the last time and the decision id in the body, for an id of so many bytes, where all goes
        in binary."""

    def ran(self, run_s: float) -> None:
        """The next answers are those of a batch that ran so long."""
        self._run = f"{self._head[4]}{run_s * 1e3:.3f}{self._head[5]}"

    def write(
        self,
        request_id: str,
        decision_id: str,
        queue_s: float,
        total_s: float,
        columns: Sequence[Column],
        place: int,
        texts: Texts,
    ) -> bytes:
        """One whole answer. Raises InfaasError for data that JSON has no form for."""
        before_id, before_decision, before_queue, before_again, *_ = self._head
        queue = f"{queue_s * 1e3:.3f}"
        head = (
            f"{before_id}{request_id}{before_decision}{decision_id}{before_queue}{queue}{before_again}{queue}{self._run}"
            f"{total_s * 1e3:.3f}"
        )
        if len(self._json) > 1:
            return self._with_json(head, decision_id, columns, place, texts)
        if len(decision_id) != self._id_bytes:
            self._id_bytes = len(decision_id)
            length = self._own_bytes + self._id_bytes
            self._tail = f"{self._lengths(length)}{self._json[0]}"
        text = f"{head}{self._tail}{decision_id}{self._end}".encode("ascii")
        if len(self._outputs) == 1:
            return text + columns[self._outputs[0][0]].bytes_of(place)
        return b"".join([text, *[columns[at].bytes_of(place) for at, _ in self._outputs]])

    def _with_json(self, head: str, decision_id: str, columns: Sequence[Column], place: int, written: Texts) -> bytes:
        body: list[Buffer] = []
        binary: list[Buffer] = []
        length = self._own_bytes + len(decision_id)
        texts = iter(self._json)
        for at, is_binary in self._outputs:
            if is_binary:
                binary.append(columns[at].part(place)[1])
                continue
            text = written.of(at, place)
            length += len(text)
            body += (next(texts).encode("ascii"), text)
        end = f"{next(texts)}{decision_id}{self._end}".encode("ascii")
        return b"".join([f"{head}{self._lengths(length)}".encode("ascii"), *body, end, *binary])

    def _lengths(self, json: int) -> str:
        if not self._has_binary:
            return f"{self._type}content-length: {json}\r\n\r\n"
        return f"{self._type}inference-header-content-length: {json}\r\ncontent-length: {json + self._binary}\r\n\r\n"


def form_of(writer: Writer, ran: Ran, columns: Sequence[Column], place: int) -> Form | None:
    """Cut out of the answer to one query, which is at that place in the columns."""
    if not all(column.is_even for column in columns):
        return None
    outcome = Outcome(
        DecisionId(_DECISION_ID), ran.variant, ran.model, ran.version, ran.worker, ran.instance, 1,
        queue_s=_QUEUE_S, run_s=_RUN_S, total_s=_TOTAL_S, slo_met=True,
    )  # fmt: skip
    tensors = tuple([Tensor(column.name, column.datatype, *column.part(place)) for column in columns])
    answer = Answer(outcome, tensors)
    try:
        wanted = writer.outputs(answer)
        data = {tensor.name: _DATA.encode() for tensor, is_binary in wanted if not is_binary}
        whole = b"".join(writer.written(Caller(_REQUEST_ID), answer, data))
    except InfaasError:
        return None  # the query is told so by the ordinary steps
    places = {id(tensor): at for at, tensor in enumerate(tensors)}
    binary = sum(len(tensor.data) for tensor, is_binary in wanted if is_binary)
    text = whole[: len(whole) - binary]
    numbers = sum(len(tensor.data) // tensor.datatype.itemsize for tensor, is_binary in wanted if not is_binary)
    if (
        len(whole) + _NUMBER_BYTES * numbers > FORMED_BYTES
        or not text.isascii()
        or any(id(tensor) not in places for tensor, _ in wanted)
    ):
        return None
    literals, holes = _cut(text.decode("ascii"))
    if holes != [*_IN_HEAD, *[_DATA] * len(data), _DECISION_ID] or _SIZES.search(literals[6]) is None:
        return None
    return Form(literals, [(places[id(tensor)], is_binary) for tensor, is_binary in wanted], binary)


def _cut(text: str) -> tuple[list[str], list[str]]:
    parts = _HOLE.split(text)
    return parts[::2], parts[1::2]
