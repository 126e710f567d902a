"""The hop within one process: what differs from a socket, and a controller's link to a worker on its own loop.

What does not differ is tested beside the sockets, in `test_hop_connections`.
"""

from __future__ import annotations

import asyncio

import pytest
from infaas_controller.queues import Ticket
from infaas_controller.wire import Outgoing
from link_values import Told, linked, reason_in

from infaas.domain.tensor import Datatype, Tensor
from infaas.rpc.hop.frames import HELLO_LIMIT_BYTES, LIMIT_BYTES, FrameError
from infaas.rpc.hop.given import Given, GivenBatch, Inputs
from infaas.rpc.hop.inner import pair
from infaas.rpc.hop.listener import Listener
from infaas.testing.builders import a_query, an_instance
from infaas.testing.fake_worker import FakeWorker
from infaas.testing.hop import WAIT_S, Heard, connected_inside

# -- a connection


async def test_tensors_of_one_piece_are_read_where_they_lie_and_others_are_joined() -> None:
    one, two = Heard(), Heard()
    payloads: list[memoryview] = []
    two.received = lambda head, payload: payloads.append(payload)  # type: ignore[method-assign]
    end, _ = pair(one, two)
    memory = bytearray(b"a tensor")
    end.send(b"one", [memoryview(memory)])
    end.send(b"two", [b"in ", b"pieces"])
    end.send(b"none")
    async with asyncio.timeout(WAIT_S):
        while len(payloads) < 3:  # noqa: ASYNC110  (a plain list of the test's own)
            await asyncio.sleep(0)
    memory[:1] = b"A"
    assert [bytes(payload) for payload in payloads] == [b"A tensor", b"in pieces", b""]
    assert all(payload.readonly for payload in payloads)
    end.cut("done")


async def test_nothing_is_told_within_the_call_that_sends_it_and_a_turns_messages_come_together() -> None:
    one, two = Heard(), Heard()
    end, _ = await connected_inside(one, two)
    await two.until(lambda: two.version is not None)
    for number in range(3):
        end.send(b"%d" % number)
    assert two.frames == []
    assert end.unsent_bytes == 3
    await asyncio.sleep(0)
    assert [head for head, _ in two.frames] == [b"0", b"1", b"2"]
    assert end.unsent_bytes == 0
    end.cut("done")


async def test_what_is_sent_while_an_end_is_held_is_told_when_it_is_settled_and_so_is_what_that_brings() -> None:
    one, two = Heard(), Heard()
    end, other = await connected_inside(one, two)
    await two.until(lambda: two.version is not None)
    hear = two.received

    def answering(head: bytes, payload: memoryview) -> None:
        hear(head, payload)
        if head != b"c":
            other.send(head.upper())

    two.received = answering  # type: ignore[method-assign]
    end.hold()
    for head in (b"a", b"b", b"c"):
        end.send(head)
    await asyncio.sleep(0)
    assert two.frames == [], "a turn of the loop tells nothing of it"
    end.settle()
    assert [head for head, _ in two.frames] == [b"a", b"b", b"c"]
    assert [head for head, _ in one.frames] == [b"A", b"B"]
    await asyncio.sleep(0)
    assert (len(two.frames), len(one.frames)) == (3, 2), "once"
    end.send(b"d")
    await asyncio.sleep(0)
    assert two.frames[-1] == (b"d", b""), "and then it is as before"
    end.cut("done")


async def test_settling_ends_where_somebody_must_wait_and_the_loop_goes_on_from_there() -> None:
    one, two = Heard(), Heard()
    end, other = await connected_inside(one, two)
    await two.until(lambda: two.version is not None)
    endless = two.received

    def echoing(head: bytes, payload: memoryview) -> None:
        endless(head, payload)
        if len(two.frames) < 1_000:
            other.send(head)

    two.received = echoing  # type: ignore[method-assign]
    hear = one.received

    def back(head: bytes, payload: memoryview) -> None:
        hear(head, payload)
        end.send(head)

    one.received = back  # type: ignore[method-assign]
    end.hold()
    end.send(b"ping")
    end.settle()
    assert 1 < len(two.frames) < 100, "it is bounded"
    async with asyncio.timeout(WAIT_S):
        await two.until(lambda: len(two.frames) == 1_000)

    other.pause(True)
    end.hold()
    end.send(b"later")
    end.settle()
    assert two.frames[-1][0] == b"ping", "who does not read is not told"
    other.pause(False)
    await two.until(lambda: two.frames[-1][0] == b"later")
    end.cut("done")


async def test_an_end_that_is_cut_while_it_is_held_is_over_once_for_both() -> None:
    one, two = Heard(), Heard()
    end, _ = await connected_inside(one, two)
    await two.until(lambda: two.version is not None)

    def breaking(head: bytes, payload: memoryview) -> None:
        raise FrameError("no such message")

    two.received = breaking  # type: ignore[method-assign]
    end.hold()
    end.send(b"what")
    end.settle()
    assert await one.over() == "the peer ended the connection"
    assert "no such message" in await two.over()
    assert (one.ends, two.ends) == (1, 1)
    end.hold()
    end.settle()


async def test_a_cut_drops_what_the_peer_was_not_told_and_both_sides_hear_of_it_once() -> None:
    one, two = Heard(), Heard()
    end, other = await connected_inside(one, two)
    end.send(b"never told")
    end.cut("enough")
    end.cut("again")
    assert await two.over() == "the peer ended the connection"
    assert (one.reason, one.ends, two.frames, two.ends) == ("enough", 1, [], 1)
    assert (await end.ended, await other.ended) == ("enough", "the peer ended the connection")
    other.send(b"to nobody")
    await other.flushed()
    assert one.frames == []


async def test_what_was_sent_before_the_end_is_told_although_reading_is_paused() -> None:
    one, two = Heard(), Heard()
    end, other = await connected_inside(one, two)
    other.pause(True)
    end.send(b"last")
    end.close("done")
    await two.over()
    assert two.frames == [(b"last", b"")]


async def test_a_message_beyond_the_limit_is_refused_where_it_is_sent() -> None:
    end, _ = await connected_inside(Heard(), Heard())
    with pytest.raises(FrameError, match="can be sent at once"):
        end.send(b"x", [bytes(2**20)] * (LIMIT_BYTES // 2**20))
    end.cut("done")


async def test_nobody_is_met_before_a_listener_opens_or_after_it_closed() -> None:
    listener = Listener(lambda hello, connection: Heard())
    with pytest.raises(ConnectionRefusedError):
        listener.meet(Heard())
    await listener.start("127.0.0.1:0")
    heard = Heard()
    listener.meet(heard).greet()
    await heard.until(lambda: heard.version is not None)
    await listener.close(WAIT_S)
    assert await heard.over() == "the peer ended the connection"
    with pytest.raises(ConnectionRefusedError):
        listener.meet(Heard())


async def test_who_has_not_said_hello_may_send_next_to_nothing_here_too() -> None:
    listener = Listener(lambda hello, connection: Heard())
    await listener.start("127.0.0.1:0")
    heard = Heard()
    end = listener.meet(heard)
    end.greet()
    end.send(bytes(HELLO_LIMIT_BYTES + 1))
    assert await heard.over() == "the peer ended the connection"
    await listener.close()


# -- a link


async def test_a_batch_goes_there_and_back_over_a_link_within_a_process() -> None:
    async with FakeWorker("w1", [an_instance("i1", worker="w1")]) as worker:
        told = Told()
        async with linked(told, "here", inner={"here": worker.meet}) as (link, _):
            await told.until("connected w1")
            inputs = (Tensor("x", Datatype.UINT8, (1, 3), b"abc"),)
            assert link.send(Outgoing(7, "i1", [Ticket(1, a_query(inputs=inputs), None)], 0.0))
            await told.until("done 7 [b'abc']")
        assert told.of_note == [
            "reported w1", "connected w1", "started 7", "done 7 [b'abc']", "stream lost w1", "lost w1"
        ]  # fmt: skip


async def test_a_worker_that_does_not_listen_yet_is_met_once_it_does_and_lost_once_when_it_stops() -> None:
    worker, told = FakeWorker("w1"), Told()
    async with linked(told, "here", inner={"here": worker.meet}) as (_, lines):
        assert await reason_in(lines) == "here cannot be reached: the worker does not listen"
        await worker.start()
        await told.until("connected w1")
        await worker.stop()
        await told.until("lost w1")
    assert told.of_note == ["reported w1", "connected w1", "stream lost w1", "lost w1"]


async def test_a_wrong_token_is_refused_within_a_process_too() -> None:
    async with FakeWorker("w1", token="right") as worker:
        told = Told()
        async with linked(told, "here", token="wrong", inner={"here": worker.meet}) as (_, lines):
            assert await reason_in(lines) == "the worker refused (unauthenticated): no or wrong token"
        assert told.said == []


async def test_workers_elsewhere_are_dialled_although_one_is_here() -> None:
    async with FakeWorker("w1") as worker:
        told = Told()
        async with linked(told, worker.address, inner={"here": FakeWorker("w2").meet}):
            await told.until("connected w1")


class Taking(Heard):
    """One that takes what is given, too."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[object] = []

    def received(self, head: bytes, payload: memoryview) -> None:
        super().received(head, payload)
        self.got.append(head)

    def given(self, what: Given) -> None:
        self.got.append(what)


def a_given(size: int) -> GivenBatch:
    inputs = Inputs(("x",), (Datatype.UINT8,), ((size,),))
    return GivenBatch(1, "i1", (1,), (1,), (9.0,), inputs, (memoryview(bytes(size)),), ())


async def test_what_is_given_comes_in_its_order_and_counts_like_what_is_sent() -> None:
    one, two = Heard(), Taking()
    end, other = await connected_inside(one, two)
    await two.until(lambda: two.version is not None)
    assert (end.can_give, other.can_give) == (True, False)
    given = a_given(5)
    end.send(b"a")
    end.give(given)
    end.send(b"b")
    assert (two.got, end.unsent_bytes) == ([], 7)
    await asyncio.sleep(0)
    assert two.got == [b"a", given, b"b"]
    assert end.unsent_bytes == 0
    end.cut("done")


async def test_what_is_given_without_any_bytes_is_waited_for_as_well() -> None:
    end, _ = await connected_inside(Heard(), Taking())
    await end.flushed()
    end.give(a_given(0))
    assert end.unsent_bytes == 1
    await asyncio.wait_for(end.flushed(), WAIT_S)
    assert end.unsent_bytes == 0
    end.cut("done")


async def test_what_is_given_to_one_that_does_not_take_it_ends_the_connection() -> None:
    one, two = Heard(), Heard()
    end, _ = await connected_inside(one, two)
    end.give(a_given(1))
    await one.until(lambda: bool(one.reason))
    assert "what is given is not taken here" in two.reason


async def test_more_than_a_frame_holds_is_not_given() -> None:
    end, _ = await connected_inside(Heard(), Taking())
    with pytest.raises(FrameError, match="can be sent at once"):
        end.give(a_given(LIMIT_BYTES + 1))
    assert end.unsent_bytes == 0
    end.cut("done")
