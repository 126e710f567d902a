"""Memory shared between the ends of a connection: large payloads lie in it, and nothing of it is left behind."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop

from infaas.rpc.hop.endpoint import Endpoint
from infaas.rpc.hop.frames import pack_elsewhere
from infaas.rpc.hop.shared import (
    GIVE_BYTES,
    KEEP_BYTES,
    SHARED_FROM_BYTES,
    SHARED_TO_BYTES,
    Offer,
    Place,
    Pool,
    SharedMemoryError,
    Window,
    peer_of,
)
from infaas.rpc.hop.sharing import Sharing
from infaas.rpc.hop.traffic import Traffic
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.testing.hop import Heard, connected, share_memory

POOL_BYTES = 2**20
LARGE = 200_000
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test's coroutine on either event loop."""

    def on_its_loop(test: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(test)

    return on_its_loop


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(POOL_BYTES)
    yield made
    made.hide()


class Keeping(Heard):
    """Keeps the payloads themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.views: list[memoryview] = []

    def received(self, head: bytes, payload: memoryview) -> None:
        self.views.append(payload)
        self._news.set()


def filler(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


def placed(pool: Pool, data: bytes) -> Place:
    found = pool.put([data[:100], memoryview(data)[100:]], len(data))
    assert found is not None
    return found


async def sharing_both_ways(one: Heard, two: Heard, pool_bytes: int = POOL_BYTES) -> tuple[Endpoint, Endpoint]:
    end, other = await connected(one, two)
    share_memory(end, other, pool_bytes)
    return end, other


def descriptors() -> int:
    """Of such memory, in this process: an object that maps it holds one."""
    there = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(os.readlink(one).startswith("/memfd:infaas-hop") for one in there if os.path.islink(one))


# -- a pool and a window on it


def test_what_is_put_there_is_read_where_it_lies(pool: Pool) -> None:
    window = Window(pool.offer(), os.getpid())
    data = filler(LARGE)
    view = window.view(placed(pool, data))
    assert view == data
    assert view.readonly
    array = np.frombuffer(view, np.float64)
    assert array.flags.aligned
    assert array.ctypes.data % 64 == 0
    assert not array.flags.owndata


def test_a_place_is_taken_for_as_long_as_anything_made_of_it_is_looked_at(pool: Pool) -> None:
    window = Window(pool.offer(), os.getpid())
    data = filler(2 * LARGE)
    array = np.frombuffer(window.view(placed(pool, data))[16:], np.uint8)
    assert pool.put([bytes(POOL_BYTES - LARGE)], POOL_BYTES - LARGE) is None
    assert (pool.places, window.places) == (1, 1)
    assert array.tobytes() == data[16:]
    del array
    assert window.places == 0
    assert pool.put([bytes(POOL_BYTES - LARGE)], POOL_BYTES - LARGE) is not None
    assert pool.places == 1


def test_a_place_may_be_let_go_of_on_any_thread_and_in_any_order(pool: Pool) -> None:
    window = Window(pool.offer(), os.getpid())
    views = [window.view(placed(pool, filler(LARGE, seed))) for seed in range(4)]
    thread = threading.Thread(target=views.pop, args=(1,))
    thread.start()
    thread.join()
    assert window.places == 3
    later = window.view(placed(pool, filler(LARGE, 9)))
    assert [bytes(view) for view in views] == [filler(LARGE, seed) for seed in (0, 2, 3)]
    assert later == filler(LARGE, 9)
    views.clear()
    del later
    assert window.places == 0


def test_what_is_being_read_stays_when_both_ends_have_let_go(pool: Pool) -> None:
    window = Window(pool.offer(), os.getpid())
    data = filler(LARGE)
    view = window.view(placed(pool, data))
    window.close()
    del window
    pool.hide()
    assert view == data


def test_many_places_that_stay_taken_do_not_hide_those_that_are_free(pool: Pool) -> None:
    window = Window(pool.offer(), os.getpid())
    size = POOL_BYTES // 16 - 2**12
    views = [window.view(placed(pool, filler(size, seed))) for seed in range(16)]
    del views[12:]
    assert window.view(placed(pool, filler(4 * size))) == filler(4 * size)
    assert [bytes(view) for view in views] == [filler(size, seed) for seed in range(12)]


def test_a_pool_that_rests_gives_back_what_it_does_not_need() -> None:
    size = 2 * GIVE_BYTES
    pool = Pool(size)
    window = Window(pool.offer(), os.getpid())
    held = os.fstat(pool.offer().descriptor)
    window.view(placed(pool, bytes(size - 4096)))
    assert os.fstat(pool.offer().descriptor).st_blocks * 512 >= size
    pool.rest()  # something was put there since the last time
    assert pool.reach_bytes >= size - 4096
    pool.rest()
    assert pool.reach_bytes < size - GIVE_BYTES + 4096
    pool.rest()
    assert pool.reach_bytes == KEEP_BYTES
    assert os.fstat(pool.offer().descriptor).st_blocks * 512 <= KEEP_BYTES + 2**16
    assert held.st_size == os.fstat(pool.offer().descriptor).st_size
    view = window.view(placed(pool, filler(size - 4096)))
    pool.rest()
    pool.rest()
    assert view == filler(size - 4096)
    del view
    pool.hide()


def test_nothing_is_left_open_when_a_pool_and_its_window_are_gone() -> None:
    before = descriptors()
    pool = Pool(POOL_BYTES)
    window = Window(pool.offer(), os.getpid())
    view = window.view(placed(pool, filler(LARGE)))
    pool.hide()
    pool.hide()
    del pool, window, view
    assert descriptors() == before


@pytest.mark.parametrize(
    ("begin", "size"), [(0, 16), (64, 100), (4096, 100), (4096 + 64, 2**40), (4096 + 65, 10), (2**63, 2**63)]
)
def test_a_payload_cannot_lie_outside_the_memory_or_in_its_first_page(pool: Pool, begin: int, size: int) -> None:
    window = Window(pool.offer(), os.getpid())
    with pytest.raises(SharedMemoryError, match="that are shared"):
        window.view(Place(begin, size))


def test_memory_that_is_not_what_was_offered_is_not_read(pool: Pool, tmp_path: Path) -> None:
    offer = pool.offer()
    with pytest.raises(SharedMemoryError, match="not what it offered"):
        Window(Offer(offer.descriptor, offer.size_bytes, bytes(16)), os.getpid())
    with pytest.raises(SharedMemoryError, match="another size"):
        Window(Offer(offer.descriptor, 2 * offer.size_bytes, offer.key), os.getpid())
    with pytest.raises(SharedMemoryError, match="cannot be opened"):
        Window(Offer(1_000_000, offer.size_bytes, offer.key), os.getpid())
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(offer.size_bytes)
        with pytest.raises(SharedMemoryError, match="no memory to share"):
            Window(Offer(file.fileno(), offer.size_bytes, offer.key), os.getpid())
    loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, offer.size_bytes)
    with pytest.raises(SharedMemoryError, match="made smaller"):
        Window(Offer(loose, offer.size_bytes, offer.key), os.getpid())
    os.close(loose)


def test_nobody_can_make_the_memory_smaller_under_its_reader(pool: Pool) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(pool.offer().descriptor, 0)
    with pytest.raises(PermissionError):
        fcntl.fcntl(pool.offer().descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_memory_outlives_the_process_that_wrote_it_for_as_long_as_it_is_read() -> None:
    program = (
        "import sys; from infaas.rpc.hop.shared import Pool; pool = Pool(2**20); offer = pool.offer();"
        "place = pool.put([bytes(range(256)) * 400], 102400);"
        "print(offer.descriptor, offer.size_bytes, offer.key.hex(), place.begin, flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    descriptor, size, key, begin = child.stdout.readline().split()
    window = Window(Offer(int(descriptor), int(size), bytes.fromhex(key)), child.pid)
    view = window.view(Place(int(begin), 102_400))
    child.kill()
    child.communicate()
    assert view == bytes(range(256)) * 400


def test_a_peer_is_known_by_the_kernels_word_and_only_over_a_unix_socket() -> None:
    near, far = socket.socketpair()
    with near, far, socket.socket(socket.AF_INET) as other:
        assert peer_of(near) == os.getpid()
        with pytest.raises(SharedMemoryError, match="not a unix socket"):
            peer_of(other)


# -- over a connection


def test_large_payloads_go_through_it_both_ways_and_small_ones_do_not(run: Run) -> None:
    async def test() -> None:
        one, two = Heard(), Heard()
        end, other = await sharing_both_ways(one, two)
        messages = [(b"a", filler(LARGE)), (b"b" * 70_000, filler(SHARED_FROM_BYTES, 1)), (b"c", b"small"), (b"d", b"")]
        for head, payload in messages:
            end.send(head, [payload[:7], memoryview(payload)[7:]])
            other.send(head, [payload])
        await two.until(lambda: len(two.frames) == 4)
        await one.until(lambda: len(one.frames) == 4)
        assert one.frames == two.frames == messages
        through = (2, LARGE + SHARED_FROM_BYTES, 0)
        assert end.traffic == other.traffic == Traffic(*through, *through)
        end.cut("done")
        await asyncio.gather(end.gone(), other.gone())

    run(test())


def test_what_finds_no_room_goes_through_the_socket_and_is_counted_at_both_ends(run: Run) -> None:
    async def test() -> None:
        one, two = Heard(), Keeping()
        end, other = await sharing_both_ways(one, two)
        sent = [filler(LARGE, seed) for seed in range(8)]
        for payload in sent:
            end.send(b"x", [payload])
        await two.until(lambda: len(two.views) == 8)
        assert [bytes(view) for view in two.views] == sent
        assert end.traffic == Traffic(5, 5 * LARGE, 3, 0, 0, 0)
        assert other.traffic == Traffic(0, 0, 0, 5, 5 * LARGE, 3)
        two.views.clear()
        end.send(b"x", [sent[0]])
        await two.until(lambda: len(two.views) == 1)
        assert end.traffic.sent == 6
        assert end.pool is not None
        assert end.pool.places == 1
        end.cut("done")
        await asyncio.gather(end.gone(), other.gone())

    run(test())


def test_what_would_hold_up_the_loop_goes_through_the_socket_and_is_no_lack_of_room(run: Run) -> None:
    async def test() -> None:
        one, two = Heard(), Heard()
        end, other = await sharing_both_ways(one, two, 4 * SHARED_TO_BYTES)
        end.send(b"x", [bytes(SHARED_TO_BYTES + 1)])
        end.send(b"y", [bytes(SHARED_TO_BYTES)])
        await two.until(lambda: len(two.frames) == 2)
        assert [(head, len(payload)) for head, payload in two.frames] == [
            (b"x", SHARED_TO_BYTES + 1),
            (b"y", SHARED_TO_BYTES),
        ]
        assert end.traffic == Traffic(1, SHARED_TO_BYTES, 0, 0, 0, 0)
        assert other.traffic == Traffic(0, 0, 0, 1, SHARED_TO_BYTES, 0)
        end.cut("done")
        await asyncio.gather(end.gone(), other.gone())

    run(test())


def test_a_connection_that_is_cut_frees_its_memory_and_what_is_still_read_stays_readable(run: Run) -> None:
    async def test() -> None:
        before = descriptors()
        one, two = Heard(), Keeping()
        end, other = await sharing_both_ways(one, two)
        end.send(b"x", [filler(LARGE)])
        await two.until(lambda: len(two.views) == 1)
        end.send(b"never read", [filler(LARGE)])
        other.cut("the worker died")
        await one.over()
        await asyncio.gather(end.gone(), other.gone())
        assert end.pool is other.window is None
        assert two.views[0] == filler(LARGE)
        end.send(b"after", [filler(LARGE)])
        two.views.clear()
        assert descriptors() == before

    run(test())


@pytest.mark.parametrize("place", [Place(4096, LARGE), Place(4096 + 64, 2**40), Place(2**62, 1)])
def test_a_peer_that_names_a_place_outside_its_memory_is_cut_off(run: Run, place: Place) -> None:
    async def test() -> None:
        one, two = Heard(), Heard()
        end, other = await sharing_both_ways(one, two)
        end._put(pack_elsewhere(b"x", place))
        assert "a payload cannot lie there" in await two.over()
        assert two.frames == []
        await asyncio.gather(end.gone(), other.gone())

    run(test())


def test_a_peer_that_names_a_place_where_none_is_shared_is_cut_off(run: Run) -> None:
    async def test() -> None:
        one, two = Heard(), Heard()
        end, other = await connected(one, two)
        end._put(pack_elsewhere(b"x", Place(4096 + 64, LARGE)))
        assert "is announced" in await two.over()
        await one.over()
        await asyncio.gather(end.gone(), other.gone())

    run(test())


def test_who_shares_nothing_offers_nothing_and_reads_nothing(run: Run) -> None:
    async def test() -> None:
        one, two = Heard(), Heard()
        end, other = await connected(one, two)
        willing, unwilling = Sharing(end, POOL_BYTES, "two"), Sharing(other, 0, "one")
        offer = willing.offer()
        assert offer is not None
        willing.answered(unwilling.answer(offer))
        assert not willing.is_lending
        assert willing.reason == "turned off by the other end's settings"
        assert unwilling.offer() is None
        assert unwilling.reason == "turned off by this end's settings"
        end.send(b"x", [filler(LARGE)])
        await two.until(lambda: two.frames == [(b"x", filler(LARGE))])
        assert end.traffic == Traffic()
        end.cut("done")
        await asyncio.gather(end.gone(), other.gone())

    run(test())


def test_an_offer_that_cannot_be_read_is_turned_down_with_the_reason_and_costs_only_speed(run: Run) -> None:
    async def test() -> None:
        before = descriptors()
        one, two = Heard(), Heard()
        end, other = await connected(one, two)
        near, far = Sharing(end, POOL_BYTES, "two"), Sharing(other, POOL_BYTES, "one")
        offer = near.offer()
        assert offer is not None
        answer = far.answer(pb.Pool(descriptor=offer.descriptor, size_bytes=offer.size_bytes, key=b"a wrong key"))
        assert not answer.is_read
        near.answered(answer)
        near.answered(pb.SharedMemory(is_read=True))  # an answer to nothing
        assert not near.is_lending
        assert "not what it offered" in near.reason
        end.send(b"x", [filler(LARGE)])
        await two.until(lambda: two.frames == [(b"x", filler(LARGE))])
        end.cut("done")
        await asyncio.gather(end.gone(), other.gone())
        near.close()
        assert descriptors() == before

    run(test())


async def test_over_tcp_nothing_is_offered() -> None:
    ends: list[Endpoint] = []

    def accept() -> Endpoint:
        ends.append(Endpoint(Heard(), silence_s=5.0))
        return ends[-1]

    loop = asyncio.get_running_loop()
    server = await loop.create_server(accept, "127.0.0.1", 0)
    end = Endpoint(Heard(), silence_s=5.0)
    await loop.create_connection(lambda: end, *server.sockets[0].getsockname()[:2])
    sharing = Sharing(end, POOL_BYTES, "worker")
    assert sharing.offer() is None
    assert sharing.reason == "the connection is not a unix socket"
    end.cut("done")
    await end.gone()
    server.close()
    await server.wait_closed()
