"""What a master hands to the processes that it starts, and what they say of themselves."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infaas.errors import SettingsError
from infaas.processes.master import RULE, make_seats, process
from infaas.processes.notes import Note
from infaas.processes.seat import SEAT, Seat, seat_of
from infaas.settings import Settings, load_settings
from infaas.up.restart import Life, backoff_s, exited, started


def test_seats_share_a_group_and_memory_and_differ_in_their_names() -> None:
    seats = make_seats(3, "c-9ee0dff1d6")
    assert [seat.name for seat in seats] == ["c-9ee0dff1d6-1", "c-9ee0dff1d6-2", "c-9ee0dff1d6-3"]
    assert len(set(seats[0].descriptors)) == 6
    assert seats[0].descriptors == seats[2].descriptors
    assert seats[1].master == os.getpid()
    for descriptor in seats[0].descriptors:
        os.close(descriptor)


def test_a_process_finds_its_seat_in_the_environment_and_hands_the_memory_to_nobody() -> None:
    (seat, _) = make_seats(2, "c-1")
    for descriptor in seat.descriptors:
        os.set_inheritable(descriptor, True)
    assert seat_of(seat.environ()) == seat
    assert not any(os.get_inheritable(descriptor) for descriptor in seat.descriptors)
    for descriptor in seat.descriptors:
        os.close(descriptor)


@pytest.mark.parametrize("text", ["7", "{", "{}", '{"numbers": [], "notes": [], "colour": 1}'])
def test_a_seat_that_no_master_gave_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="INFAAS_SEAT is set by the master of several processes alone"):
        seat_of({SEAT: text})


def test_a_closed_descriptor_is_no_seat() -> None:
    (seat,) = make_seats(1, "c-1")
    os.close(seat.notes[0])
    with pytest.raises(SettingsError, match="INFAAS_SEAT"):
        seat_of(seat.environ())
    os.close(seat.numbers[0])


def test_one_living_process_of_all_has_the_claim() -> None:
    first, second = make_seats(2, "c-1")
    command = [sys.executable, "-c", _CLAIM]
    with subprocess.Popen(
        command,
        env={**os.environ, **second.environ()},
        pass_fds=second.descriptors,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        assert not first.claim.take()
        other.stdin.close()
        other.wait()
    assert first.claim.take()
    assert first.claim.take(), "who has it keeps it"
    assert Seat().claim.take()
    for descriptor in first.descriptors:
        os.close(descriptor)


_CLAIM = """
import os, sys
from infaas.processes.seat import seat_of
print(seat_of(os.environ).claim.take(), flush=True)
sys.stdin.read()
"""


def test_who_has_no_seat_is_alone_and_has_no_neighbours() -> None:
    alone = seat_of({})
    assert alone.is_alone
    assert (alone.count, alone.descriptors) == (1, ())
    assert not alone.has_neighbour("c-1-2")


def test_neighbours_are_the_other_seats_of_the_group() -> None:
    seat = Seat(2, 3, "c-1")
    assert seat.has_neighbour("c-1-1")
    assert seat.has_neighbour("c-1-3")
    assert not any(seat.has_neighbour(name) for name in ("c-1-2", "c-2-1", "c-1", "c-1-x", ""))


def test_a_process_is_told_its_ports_and_handed_the_memory() -> None:
    seat = Seat(2, 3, "c-1", 77, (10, 11, 12), (20, 21, 22))
    spec = process(seat, {"http_port": 8000, "grpc_port": 8001, "metrics_port": 8002}, 25.0)
    assert (spec.name, spec.argv[1:], spec.stop_timeout_s) == (
        "controller-2",
        ("-m", "infaas.programs", "controller"),
        25.0,
    )
    assert spec.descriptors == (10, 11, 12, 20, 21, 22)
    settings = load_settings(environ=dict(spec.env))
    assert (settings.controller.http_port, settings.controller.grpc_port) == (8000, 8001)


def test_a_process_that_ended_is_started_at_once_and_after_growing_pauses_if_it_does_not_stay() -> None:
    life, now, pauses = Life(), 0.0, []
    for _ in range(5):
        life = exited(started(life, now), -9, now + 1.0, RULE, draw=0.0)
        assert life.next_try_at is not None
        pauses.append(life.next_try_at - now - 1.0)
        now = life.next_try_at
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0]
    steady = exited(started(life, now), -9, now + RULE.stable_after_s, RULE, draw=0.0)
    assert steady.next_try_at == now + RULE.stable_after_s
    assert backoff_s(100, RULE) == RULE.max_delay_s


@pytest.mark.parametrize("number", [0, -1, 65, 1000])
def test_fewer_than_one_process_and_more_than_sixty_four_are_refused(number: int) -> None:
    with pytest.raises(SettingsError, match=rf"'controller.processes': .* \(got '?{number}'?\)"):
        load_settings(environ={"INFAAS_CONTROLLER__PROCESSES": str(number)})


def test_one_process_is_the_default() -> None:
    assert Settings().controller.processes == 1


def test_a_note_is_read_whole_replaced_and_gone_when_torn_up(tmp_path: Path) -> None:
    descriptor = os.memfd_create("note")
    note = Note(descriptor)
    assert note.read() is None
    for text in (b"a long first note", b"short", b""):
        note.write(text)
        assert note.read() == text
    note.tear_up()
    assert note.read() is None
    note.write(b"the next one's")
    assert note.read() == b"the next one's"
    os.close(descriptor)


def test_a_reader_never_sees_half_a_note() -> None:
    descriptor = os.memfd_create("note")
    texts = [bytes([letter]) * size for letter, size in ((65, 10), (66, 60_000), (67, 9_000))]
    over = threading.Event()

    def write() -> None:
        writer = Note(descriptor)
        while not over.is_set():
            for text in texts:
                writer.write(text)

    thread = threading.Thread(target=write, name="writer")
    thread.start()
    reader, seen = Note(descriptor), set()
    for _ in range(2_000):
        if (text := reader.read()) is not None:
            seen.add(text)
    over.set()
    thread.join()
    os.close(descriptor)
    assert seen <= set(texts)
