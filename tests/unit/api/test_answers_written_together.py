"""What is written for many queries at once is what the ordinary steps write for each, or is left to them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from infaas_controller.api.auth import Authenticator
from infaas_controller.api.headers import Caller
from infaas_controller.api.http_exchange import Exchange
from infaas_controller.api.http_fast import FastInfer
from infaas_controller.api.http_form import FORMED_BYTES
from infaas_controller.api.service import Inference
from infaas_controller.outputs import Outputs
from infaas_controller.ports import Answer, Batch, Outcome, QueryService, Ran, Waiter
from infaas_controller.queues import Ticket

from infaas.domain.ids import DecisionId, InstanceId, TaskName, VariantName, WorkerId
from infaas.domain.query import AccuracyConfidence, Decision, Query
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.errors import InfaasError
from infaas.observe.metrics import Metrics
from infaas.rpc.hop.columns import read_columns, write_column
from infaas.rpc.tensors import pack_bytes
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.testing.builders import a_task, a_variant, a_view
from infaas.testing.clock import ManualClock
from infaas.tokens import Tokens

X = TensorSpec("x", Datatype.FP32, (-1, 4))
Y = TensorSpec("y", Datatype.FP32, (-1, 2))
Z = TensorSpec("z", Datatype.INT64, (-1,))
MARKERS = ("r-form-7f3a9c", "d-form-7f3a9c", '"data-form-7f3a9c"', "data-form-7f3a9c", "111111111.111", "222222222.222")
PLAIN = "abcXYZ019 _.-/"
NUMBERS = tuple(each for each in Datatype if each is not Datatype.BYTES)


class Service:
    """Takes queries and keeps them: they are answered by the test."""

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        task = a_task(inputs=(X,), outputs=tuple(outputs))
        variant = a_variant(inputs=(X,), outputs=tuple(outputs), cost=2.0)
        self.view = a_view(tasks=[task], variants=[variant])
        self.begun: list[tuple[Query, Waiter]] = []
        self.dropped = 0

    def arrived(self, now: float) -> float:
        return now

    def can_begin(self, query: Query) -> bool:
        return True

    def begin(self, query: Query, waiter: Waiter) -> Callable[[], None]:
        self.begun.append((query, waiter))
        return self._drop

    def _drop(self) -> None:
        self.dropped += 1

    def decide(self) -> None: ...

    def decision(self, key: str) -> Decision | None:
        return None


@dataclass
class Line:
    """A connection, as far as an exchange sees one."""

    standing_fields: list[tuple[bytes, bytes]]
    heard: list[bytes] = field(default_factory=list)
    wholes: int = 0
    fault: Exception | None = None
    is_aborted: bool = False

    def abort(self) -> None:
        self.is_aborted = True

    def answer(self, exchange: Exchange, pieces: Sequence[bytes | memoryview]) -> None:
        exchange.response_started = exchange.response_complete = True
        self.heard.append(b"".join(pieces))

    def answer_whole(self, exchange: Exchange, data: bytes, at: float) -> bool:
        if self.fault is not None:
            raise self.fault
        if not exchange.keep_alive:
            return False
        self.answer(exchange, (data,))
        self.wholes += 1
        return True


class Edge:
    """Exchanges as connections make them, and batches as the dispatcher answers them."""

    def __init__(self, outputs: Sequence[TensorSpec] = (Y, Z)) -> None:
        self.clock = ManualClock()
        self.service = Service(outputs)
        self.metrics = Metrics()
        service = cast(QueryService, self.service)
        inference = Inference(service, self.clock, AccuracyConfidence.POINT, self.metrics)
        self.fast = FastInfer(inference, Authenticator(Tokens.of(None)), 2**20, 2**20)
        self.standing = [(b"server", b"infaas")]
        self._numbers = 0

    def asked(self, items: int = 1, *fields: tuple[bytes, bytes], keep_alive: bool = True, **more: Any) -> Ticket:
        """A request that came by a connection of its own."""
        said = {"name": "x", "shape": [items, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16 * items}}
        head = json.dumps({"inputs": [said], **more}).encode()
        body = head + bytes(16 * items)
        raw = [
            (b"inference-header-content-length", b"%d" % len(head)), (b"content-length", b"%d" % len(body)), *fields
        ]  # fmt: skip
        exchange = self.fast.exchange(Line(self.standing), b"/v2/models/digits/infer", raw)
        assert exchange is not None
        exchange.keep_alive = keep_alive
        exchange.add(body)
        assert exchange.prepare()
        exchange.start()
        query, waiter = self.service.begun[-1]
        assert waiter is exchange, line_of(exchange).heard
        self._numbers += 1
        return Ticket(self._numbers, query, exchange)

    def taught(self, *fields: tuple[bytes, bytes], **more: Any) -> Ticket:
        """The next one: one like it has come before."""
        self.asked(1, *fields, **more)
        return self.asked(1, *fields, **more)

    def answer(self, batch: Batch) -> list[int]:
        return sorted(self.fast.together.answer(batch))

    def counted(self, name: str) -> float:
        return sum(
            sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == name
        )


def exchange_of(ticket: Ticket) -> Exchange:
    assert isinstance(ticket.owner, Exchange)
    return ticket.owner


def line_of(exchange: Exchange) -> Line:
    return cast(Line, exchange._connection)


def heard(ticket: Ticket) -> list[bytes]:
    return line_of(exchange_of(ticket)).heard


def filled(rng: random.Random, datatype: Datatype, shape: Sequence[int]) -> bytes:
    """Any values of a datatype, whatever they look like as JSON."""
    count = math.prod(shape)
    if datatype is Datatype.BOOL:
        return bytes(rng.randrange(2) for _ in range(count))
    if datatype is Datatype.BYTES:
        return pack_bytes([rng.choice([b"a", "é".encode(), b"\xff", b""]) for _ in range(count)])
    return rng.randbytes(count * datatype.itemsize)


def a_ran(run_s: float = 0.001, variant: str | None = "v1", worker: str = "w1", version: int = 1) -> Ran:
    """`variant` None: it has left the catalogue."""
    if variant is None:
        return Ran(None, None, None, WorkerId(worker), InstanceId("i1"), run_s)
    return Ran(VariantName(variant), "m1", version, WorkerId(worker), InstanceId("i1"), run_s)


def a_batch(
    tickets: Sequence[Ticket], specs: Sequence[TensorSpec] = (Y, Z), *, ran: Ran | None = None, first: int = 1,
    now: float = 1_000.0, seed: int = 0,
) -> Batch:  # fmt: skip
    """As it comes from a worker, the tensors with values of their own."""
    rng = random.Random(seed)
    items = [ticket.items for ticket in tickets]
    done = pb.BatchDone(queries=[ticket.number for ticket in tickets], items=items)
    segments: list[bytes] = []
    for spec in specs:
        parts = [((count, *spec.shape[1:]), filled(rng, spec.datatype, (count, *spec.shape[1:]))) for count in items]
        segments += map(bytes, write_column(done.outputs, done.sizes, spec.name, spec.datatype, items, parts))
    columns = read_columns(done.outputs, items, done.sizes, memoryview(b"".join(segments)))
    places: dict[int, object] = {ticket.number: place for place, ticket in enumerate(tickets)}
    return Batch(tickets, ran or a_ran(), Outputs(columns), places, "d-c1-2a-", first, now)


def ordinarily(batch: Batch, at: int) -> bytes | None:
    """What the ordinary steps write for one of a batch; None: they have an error to tell."""
    ended = batch.ended[at]
    assert isinstance(ended.owner, Exchange)
    try:
        return b"".join(ended.owner.written(Caller(ended.query.id), an_answer(batch, at), {}))
    except InfaasError:
        return None


def an_answer(batch: Batch, at: int) -> Answer:
    """As one is told who is told by himself."""
    ended, ran = batch.ended[at], batch.ran
    outcome = Outcome(
        DecisionId(f"{batch.prefix}{batch.first + at}"), ran.variant, ran.model, ran.version, ran.worker, ran.instance,
        1, queue_s=ended.queue_s, run_s=ran.run_s, total_s=batch.now - ended.query.arrived_at, slo_met=True,
    )  # fmt: skip
    return Answer(outcome, batch.outputs.tensors(at))


# Forms


plain_names = st.text(PLAIN, min_size=1, max_size=8)


@st.composite
def odd_names(draw: st.DrawFn) -> str:
    """Beyond ASCII, or like what stands in a form for what is each answer's own, or in need of JSON's escapes."""
    any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
    begin = draw(st.one_of(plain_names, any_text, st.sampled_from(MARKERS)))
    return begin + draw(st.sampled_from(["", *MARKERS, "\r\n\r\n", '"', "\\", "content-length: 3"]))


@st.composite
def output_specs(draw: st.DrawFn, *, are_odd: bool) -> list[TensorSpec]:
    named = st.one_of(plain_names, odd_names()) if are_odd else plain_names
    kinds = st.sampled_from([*NUMBERS, Datatype.BYTES] if are_odd else NUMBERS)
    found: dict[str, TensorSpec] = {}
    for _ in range(draw(st.integers(1, 3))):
        name, tail = draw(named), draw(st.lists(st.integers(0, 3), max_size=2))
        found[name] = TensorSpec(name, draw(kinds), (-1, *tail))
    return list(found.values())


@st.composite
def wishes(draw: st.DrawFn, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """What a request says of its outputs. FP16 in JSON is refused before anything runs, BYTES go another way."""
    shy = {spec.name for spec in specs if spec.datatype in (Datatype.FP16, Datatype.BYTES)}
    if draw(st.booleans()):
        is_binary = bool(shy) or draw(st.booleans())
        return {"parameters": {"binary_data_output": True}} if is_binary else {}
    chosen = draw(st.lists(st.sampled_from([spec.name for spec in specs]), min_size=1, unique=True))
    ways = [True if name in shy else draw(st.booleans()) for name in chosen]
    return {
        "outputs": [
            {"name": name, "parameters": {"binary_data": is_binary}}
            for name, is_binary in zip(chosen, ways, strict=True)
        ]
    }


seconds = st.one_of(
    st.floats(0, 2),
    st.sampled_from([0.0, 1e-9, 0.0004999, 0.0005, 111_111.111111, 222_222.222222, 1e9]),
    st.floats(0, 1e7),
)


@pytest.mark.parametrize("are_odd", [False, True])
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_answer_is_the_one_that_the_ordinary_steps_write(are_odd: bool, data: st.DataObject) -> None:
    specs = data.draw(output_specs(are_odd=are_odd))
    edge = Edge(specs)
    kinds = data.draw(st.lists(st.tuples(st.integers(1, 3), wishes(specs)), min_size=1, max_size=3))
    for items, wish in kinds:
        edge.asked(items, **wish)
    for round_ in range(data.draw(st.integers(1, 3))):
        tickets: list[Ticket] = []
        for items, wish in data.draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=6)):
            ticket = edge.asked(items, **wish)
            ticket.queue_s = data.draw(seconds)
            tickets.append(ticket)
            edge.clock.advance(data.draw(st.floats(0, 10)))
        ran = a_ran(
            data.draw(seconds),
            data.draw(st.sampled_from(["v1", "v2", None, *MARKERS[: 2 * are_odd]])),
            version=round_ + 1,
        )
        first = data.draw(st.sampled_from([1, 8, 97, 10**12 - 2]))
        batch = a_batch(tickets, specs, ran=ran, first=first, now=edge.clock.now() + data.draw(seconds), seed=round_)
        expected = [ordinarily(batch, at) for at in range(len(tickets))]
        left = edge.answer(batch)
        event(f"{len(left)} of {len(tickets)} are left")
        for at, ticket in enumerate(tickets):
            assert heard(ticket) == ([] if at in left else [expected[at]])
        unlike = [at for at, ticket in enumerate(tickets) if ticket.owner.known is None]  # the last taught otherwise
        assert are_odd or left == unlike, "nothing speaks against a form"
        if data.draw(st.booleans()):
            edge.standing = [(b"date", b"round %d" % round_)]


@given(st.sampled_from([marker for marker in MARKERS if '"' not in marker]), st.booleans())
@example("é", True)
@example("\N{SNOWMAN}", False)
def test_names_that_cannot_be_told_from_a_form_cost_nothing_but_the_form(name: str, is_binary: bool) -> None:
    specs = [TensorSpec(name, Datatype.FP32, (-1, 2))]
    edge = Edge(specs)
    ticket = edge.taught(parameters={"binary_data_output": is_binary})
    batch = a_batch([ticket, edge.asked(parameters={"binary_data_output": is_binary})], specs)
    expected = ordinarily(batch, 0)
    assert expected is not None
    assert edge.answer(batch) == [0, 1]
    assert heard(ticket) == []


@pytest.mark.parametrize("wish", [{"parameters": {"binary_data_output": True}}, {}])
@pytest.mark.parametrize("others", [(), (Z,)])
def test_an_output_without_elements_is_said_to_be_there_as_ever(
    wish: dict[str, Any], others: tuple[TensorSpec, ...]
) -> None:
    specs = [TensorSpec("y", Datatype.FP32, (-1, 0)), *others]
    edge = Edge(specs)
    ticket = edge.taught(**wish)
    batch = a_batch([ticket], specs)
    expected = ordinarily(batch, 0)
    assert edge.answer(batch) == []
    assert heard(ticket) == [expected]


def test_what_is_larger_than_a_form_is_worth_is_left() -> None:
    specs = [TensorSpec("y", Datatype.UINT8, (-1, FORMED_BYTES))]
    edge = Edge(specs)
    tickets = [edge.taught(parameters={"binary_data_output": True})]
    assert edge.answer(a_batch(tickets, specs)) == [0]


def test_numbers_in_text_are_reckoned_with_as_many_letters_as_they_may_have() -> None:
    """All answers of a batch are written before the first is sent: a short first one says nothing of the next."""
    specs = [TensorSpec("y", Datatype.FP32, (-1, FORMED_BYTES // 25))]
    edge = Edge(specs)
    ticket = edge.taught()
    assert edge.answer(a_batch([ticket], specs)) == [0]
    assert heard(ticket) == []


def test_answers_of_another_shape_than_the_last_ones_say_their_own() -> None:
    edge = Edge([TensorSpec("y", Datatype.FP32, (-1, -1))])
    wish = {"parameters": {"binary_data_output": True}}
    edge.taught(**wish)
    for width in (2, 3, 2):
        ticket = edge.asked(**wish)
        batch = a_batch([ticket], [TensorSpec("y", Datatype.FP32, (-1, width))])
        expected = ordinarily(batch, 0)
        assert edge.answer(batch) == []
        assert heard(ticket) == [expected]
        assert b'"shape":[1,%d]' % width in heard(ticket)[0]


def test_answers_without_an_output_that_was_asked_for_are_left_so_that_each_is_told() -> None:
    edge = Edge()
    ticket = edge.taught(outputs=[{"name": "z"}])
    batch = a_batch([ticket, edge.asked()], [Y])
    assert ordinarily(batch, 0) is None
    assert 0 in edge.answer(batch)
    exchange_of(ticket).set_result(an_answer(batch, 0))
    assert b"left out output 'z'" in heard(ticket)[0]


def test_who_asks_why_is_left_and_so_is_whose_request_taught_nothing() -> None:
    edge = Edge()
    explained = edge.taught((b"x-infaas-explain", b"true"))
    with_id = edge.asked(id="mine")
    named = edge.asked(1, (b"x-request-id", b"mine"))
    traced = edge.asked(1, (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
    usual = edge.taught()
    batch = a_batch([explained, with_id, named, traced, usual])
    expected = ordinarily(batch, 4)
    assert edge.answer(batch) == [0, 1, 2, 3]
    assert heard(usual) == [expected]


# Faults and leavers


def test_who_has_left_is_told_nothing_and_costs_nobody_else_an_answer() -> None:
    edge = Edge()
    tickets = [edge.taught(), edge.asked(), edge.asked()]
    for place in (0, 2):
        exchange = exchange_of(tickets[place])
        exchange.disconnected = True
        exchange.set()
    batch = a_batch(tickets)
    expected = ordinarily(batch, 1)
    assert edge.answer(batch) == [0, 2]
    assert [heard(ticket) for ticket in tickets] == [[], [expected], []]
    assert edge.service.dropped == 2


@pytest.mark.parametrize("is_first", [True, False])
def test_who_closes_the_connection_is_left_and_costs_nobody_an_answer(is_first: bool) -> None:
    """As when the server shuts down while it answers, and for requests that say so themselves."""
    edge = Edge()
    stays, closes = edge.taught(), edge.asked()
    exchange_of(closes).keep_alive = False
    tickets = [closes, stays] if is_first else [stays, closes]
    batch = a_batch(tickets)
    expected = ordinarily(batch, tickets.index(stays))
    left = edge.answer(batch)
    assert tickets.index(closes) in left
    assert heard(closes) == []
    assert heard(stays) == ([] if tickets.index(stays) in left else [expected])
    exchange_of(closes).set_result(an_answer(batch, tickets.index(closes)))
    assert b"\r\nconnection: close\r\n" in heard(closes)[0]


def test_requests_that_ask_for_the_end_of_their_connections_are_left_all_of_them() -> None:
    edge = Edge()
    close = (b"connection", b"close")
    edge.asked(1, close, keep_alive=False)
    tickets = [edge.asked(1, close, keep_alive=False) for _ in range(3)]
    assert edge.answer(a_batch(tickets)) == [0, 1, 2]
    assert [heard(ticket) for ticket in tickets] == [[], [], []]


def test_a_connection_that_fails_costs_nobody_else_an_answer_and_all_are_counted() -> None:
    edge = Edge()
    tickets = [edge.taught(), edge.asked(), edge.asked()]
    line_of(exchange_of(tickets[1])).fault = RuntimeError("a fault of ours")
    batch = a_batch(tickets)
    expected = [ordinarily(batch, at) for at in range(3)]
    assert edge.answer(batch) == []
    assert [heard(ticket) for ticket in tickets] == [[expected[0]], [], [expected[2]]]
    assert [line_of(exchange_of(ticket)).is_aborted for ticket in tickets] == [False, True, False]
    assert edge.counted("infaas_requests_total") == 3


@pytest.mark.parametrize("place", [0, 1])
def test_a_worker_that_answers_with_other_numbers_of_items_breaks_no_connection(place: int) -> None:
    """Whatever it says, what is said of an answer's length is right: the next answer begins after it."""
    edge = Edge()
    tickets = [edge.taught(parameters={"binary_data_output": True}) for _ in range(2)]
    tickets[place].items = 3
    batch = a_batch(tickets)
    left = edge.answer(batch)
    for at, ticket in enumerate(tickets):
        assert len(heard(ticket)) == (at not in left)
        for answer in heard(ticket):
            head, _, body = answer.partition(b"\r\n\r\n")
            assert f"content-length: {len(body)}".encode() in head.split(b"\r\n")


# Counting


def test_what_is_counted_is_what_was_sent_by_priority_and_handle() -> None:
    together, apart = Edge(), Edge()
    kinds = [(1, ()), (3, ()), (2, ((b"x-infaas-priority", b"critical"),))]
    for edge in (together, apart):
        for items, fields in kinds:
            edge.asked(items, *fields)
        tickets = [edge.asked(items, *fields) for items, fields in kinds for _ in range(items + 1)]
        for place, ticket in enumerate(tickets):
            ticket.queue_s = 0.0007 * place
        edge.clock.advance(0.25)
        batch = a_batch(tickets, now=edge.clock.now())
        if edge is together:
            assert edge.answer(batch) == []
            continue
        for at, ticket in enumerate(tickets):
            exchange_of(ticket).set_result(an_answer(batch, at))
    assert samples(together.metrics) == pytest.approx(samples(apart.metrics))
    assert together.counted("infaas_requests_total") == 9
    assert together.counted("infaas_cost_usd_total") == pytest.approx(2.0 * (2 + 3 * 4 + 2 * 3) / 1000)


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def test_the_task_of_an_answer_is_the_one_that_was_asked_for() -> None:
    edge = Edge()
    ticket = edge.taught()
    batch = a_batch([ticket])
    assert edge.answer(batch) == []
    (answer,) = heard(ticket)
    document = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert document["model_name"] == TaskName("digits")
    assert document["parameters"]["decision_id"] == "d-c1-2a-1"
    assert [output["name"] for output in document["outputs"]] == ["y", "z"]
