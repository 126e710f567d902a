"""What processes that are one controller say in all."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from infaas_controller.siblings import Own, ProcessState, Siblings, may_listen, shared_out

from infaas.clock import SystemClock
from infaas.domain.ids import ControllerId
from infaas.observe.live import Live, LiveCollector, WorkerLive, together
from infaas.processes.master import make_seats
from infaas.processes.notes import Note
from infaas.processes.seat import Seat
from infaas.settings import Settings


@pytest.fixture
def seats() -> Iterator[list[Seat]]:
    made = make_seats(3, "c-1")
    yield made
    for descriptor in made[0].descriptors:
        os.close(descriptor)


def own(in_flight: int = 0, *, is_leader: bool = False, starts: int = 1) -> Own:
    return Own(Live(in_flight=in_flight, journal_waiting=1, processes=1), is_leader, True, 2, starts)


def speaking(seat: Seat, said: Own, name: str | None = None) -> Siblings:
    siblings = Siblings(seat, ControllerId(name or seat.name), SystemClock())
    siblings.speak_with(lambda: said)
    return siblings


@pytest.mark.parametrize(
    ("is_ready", "waited_s", "does_another_serve", "may"),
    [
        (True, 0.0, False, True),
        (True, 0.0, True, True),
        (False, 0.1, False, False),
        (False, 2.0, False, True),
        (False, 3600.0, True, False),
    ],
)
def test_a_process_that_is_not_ready_takes_no_connections_that_others_would_answer(
    is_ready: bool, waited_s: float, does_another_serve: bool, may: bool
) -> None:
    assert may_listen(is_ready=is_ready, waited_s=waited_s, does_another_serve=does_another_serve) is may


def test_what_is_limited_per_controller_is_shared_out() -> None:
    settings = Settings.model_validate({"controller": {"max_connections": 10, "max_queue_size": 7}})
    share = shared_out(settings, 3).controller
    assert (share.max_connections, share.max_queue_size, share.decision_memory) == (4, 3, 3334)
    assert (share.max_queue_queries, share.max_queue_bytes) == (33_334, -(-(2**30) // 3))
    assert shared_out(settings, 1) == settings
    assert share.max_body_bytes == settings.controller.max_body_bytes


@pytest.mark.parametrize(
    ("most", "count", "share"), [(64 * 2**20, 4, 16 * 2**20), (64 * 2**20, 16, 8 * 2**20), (2**20, 4, 2**20)]
)
def test_the_largest_query_finds_room_in_each_of_many_processes_if_it_does_in_one(
    most: int, count: int, share: int
) -> None:
    given = {"max_queue_bytes": most, "max_body_bytes": 8 * 2**20}
    settings = Settings.model_validate({"controller": given})
    assert shared_out(settings, count).controller.max_queue_bytes == share


def test_every_process_reads_of_all_that_have_said_something(seats: list[Seat]) -> None:
    first, second, third = (speaking(seat, own(number)) for number, seat in enumerate(seats, 1))
    assert [told.number for told in first.all()] == [1]
    second.turn(ProcessState.SERVING, "http://127.0.0.1:1")
    third.turn(ProcessState.STARTING)
    assert [told.number for told in first.all()] == [1, 2, 3]
    assert first.urls() == {"c-1-2": "http://127.0.0.1:1"}
    assert first.does_another_serve()
    assert not second.does_another_serve()
    assert first.live().in_flight == 6
    assert first.live().processes == 1
    assert first.name == "c-1"


def test_who_died_counts_no_more(seats: list[Seat]) -> None:
    first, second, _ = (speaking(seat, own(5)) for seat in seats)
    second.turn(ProcessState.SERVING, "http://127.0.0.1:1")
    assert first.live().in_flight == 10
    Note(seats[1].notes[1]).tear_up()
    assert first.live().in_flight == 5
    assert first.urls() == {}
    assert not first.does_another_serve()


def test_processes_are_shown_in_the_order_of_their_seats(seats: list[Seat]) -> None:
    first, _, third = (speaking(seat, own(1, is_leader=seat.number == 1, starts=seat.number)) for seat in seats)
    first.turn(ProcessState.SERVING)
    found = third.documents()
    assert [(one.number, one.controller, one.state, one.is_leader, one.restarts) for one in found] == [
        (1, "c-1-1", "serving", True, 0),
        (3, "c-1-3", "starting", False, 2),
    ]


def test_a_note_that_nobody_can_read_is_left_out(seats: list[Seat]) -> None:
    Note(seats[0].notes[2]).write(b'{"number": "three"}')
    assert speaking(seats[0], own()).others() == []


def test_a_lone_controller_is_all_there_is() -> None:
    alone = speaking(Seat(), own(4), "c-9")
    alone.turn(ProcessState.SERVING)
    assert (alone.name, alone.live().in_flight, alone.urls(), alone.others()) == ("c-9", 4, {}, [])
    assert [one.number for one in alone.documents()] == [1]


def test_gauges_of_several_processes_are_sums_of_their_parts_and_the_worst_of_what_all_see() -> None:
    seen = together(
        [
            Live(
                in_flight=2,
                queue_size={"digits": 3},
                queue_bytes=768,
                queue_tenants={"digits": 2},
                replicas={"READY": 2},
                workers={"w-1": WorkerLive(True, 0.2, 0.5), "w-2": WorkerLive(True)},
                is_store_up=True,
                view_age_s=0.1,
                is_leader=False,
                is_catalog_up=True,
                journal_waiting=4,
                processes=1,
            ),
            Live(
                in_flight=1,
                queue_size={"digits": 1, "wine": 5},
                queue_bytes=256,
                queue_tenants={"digits": 1, "wine": 3},
                replicas={"READY": 2},
                workers={"w-1": WorkerLive(False, 3.0, 0.4)},
                is_store_up=False,
                view_age_s=9.0,
                is_leader=True,
                is_catalog_up=None,
                journal_waiting=1,
                processes=1,
            ),
        ]
    )
    assert (seen.in_flight, dict(seen.queue_size), seen.replicas) == (3, {"digits": 4, "wine": 5}, {"READY": 2})
    assert (seen.queue_bytes, dict(seen.queue_tenants)) == (1_024, {"digits": 3, "wine": 3})
    assert seen.workers == {"w-1": WorkerLive(False, 3.0, 0.5), "w-2": WorkerLive(True)}
    assert (seen.is_store_up, seen.view_age_s, seen.is_leader, seen.is_catalog_up) == (False, 9.0, True, True)
    assert (seen.journal_waiting, seen.processes) == (5, 2)
    samples = {
        sample.name: sample.value for family in LiveCollector(lambda: seen).collect() for sample in family.samples
    }
    assert samples["infaas_in_flight"] == 3
    assert samples["infaas_queue_bytes"] == 1_024
    assert samples["infaas_controller_processes"] == 2
