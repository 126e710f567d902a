"""Frames as bytes: whatever the pieces they arrive in, they are read as they were sent, or refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infaas.rpc.hop.frames import (
    ALIVE,
    LIMIT_BYTES,
    OLDEST_VERSION,
    PREFACE_BYTES,
    SCRATCH_BYTES,
    VERSION,
    Frame,
    FrameError,
    FrameReader,
    agreed_version,
    flat,
    pack,
    pack_elsewhere,
    preface,
    version_of,
)
from infaas.rpc.hop.shared import Place

SIZES = st.one_of(st.integers(0, 300), st.integers(SCRATCH_BYTES - 30, SCRATCH_BYTES + 30), st.just(3 * SCRATCH_BYTES))


def fed(reader: FrameReader, data: bytes, pieces: list[int]) -> list[Frame]:
    """The frames of `data`, delivered in pieces of these sizes over and over, as far as there is room."""
    frames: list[Frame] = []
    at = turn = 0
    while at < len(data):
        room = reader.room()
        assert len(room) > 0
        count = min(len(room), pieces[turn % len(pieces)], len(data) - at)
        room[:count] = data[at : at + count]
        frames += reader.took(count)
        at += count
        turn += 1
    return frames


def filler(size: int) -> bytes:
    """Bytes that tell where they are from."""
    return (np.arange(size, dtype=np.uint32) * 2654435761 >> 13).astype(np.uint8).tobytes()


@given(
    st.lists(st.tuples(SIZES, st.lists(SIZES, max_size=3)), min_size=1, max_size=6),
    st.lists(st.sampled_from([1, 7, 8, 100, 65_536, 500_000]).filter(bool), min_size=1, max_size=4),
)
def test_frames_are_read_as_they_were_sent_whatever_pieces_they_arrive_in(
    wanted: list[tuple[int, list[int]]], pieces: list[int]
) -> None:
    if max(pieces) < 100:
        pieces = [*pieces, 10_000]  # else a large frame takes long
    messages = [(filler(head), [memoryview(filler(size)) for size in sizes]) for head, sizes in wanted]
    sent = b"".join(b"".join(pack(head, segments)) for head, segments in messages)
    reader = FrameReader()
    frames = fed(reader, sent, pieces)
    assert reader.is_between_frames
    assert [(head, bytes(payload)) for head, payload in frames] == [
        (head, b"".join(segments)) for head, segments in messages
    ]
    assert all(payload.readonly for _, payload in frames)


@given(
    st.lists(st.tuples(SIZES, st.booleans()), min_size=1, max_size=6),
    st.lists(st.sampled_from([1, 7, 8, 15, 100, 65_536]), min_size=1, max_size=4),
)
def test_payloads_that_lie_elsewhere_are_found_whatever_pieces_their_frames_arrive_in(
    wanted: list[tuple[int, bool]], pieces: list[int]
) -> None:
    if max(pieces) < 100:
        pieces = [*pieces, 10_000]
    pool = {4096 * number: filler(100 + number) for number in range(1, 8)}
    sent: list[bytes] = []
    expected: list[tuple[bytes, bytes]] = []
    for number, (size, is_elsewhere) in enumerate(wanted, 1):
        head, payload = filler(size), pool[4096 * number]
        pieces_of = pack_elsewhere(head, Place(4096 * number, len(payload))) if is_elsewhere else pack(head, [payload])
        sent.append(b"".join(pieces_of))
        expected.append((head, payload))
    reader = FrameReader()
    reader.find = lambda place: memoryview(pool[place.begin])[: place.size_bytes]
    frames = fed(reader, b"".join(sent), pieces)
    assert reader.is_between_frames
    assert [(head, bytes(payload)) for head, payload in frames] == expected


def test_a_payload_elsewhere_is_no_frame_where_nothing_is_shared() -> None:
    with pytest.raises(FrameError, match="is announced"):
        fed(FrameReader(), b"".join(pack_elsewhere(b"head", Place(4096, 10))), [10_000])


def test_what_was_read_stays_when_more_is_read_into_the_same_place() -> None:
    reader = FrameReader()
    first, second = (b"".join(pack(b"h", [bytes([n]) * 1000])) for n in (1, 2))
    (one,) = fed(reader, first, [10_000])
    fed(reader, second, [10_000])
    assert bytes(one[1]) == b"\x01" * 1000


@pytest.mark.parametrize("head", [0, 1, 5, 16, 77])
def test_a_large_payload_lies_where_a_runtime_can_use_it_without_a_copy(head: int) -> None:
    ((_, payload),) = fed(FrameReader(), b"".join(pack(bytes(head), [bytes(8 * SCRATCH_BYTES)])), [10_000])
    assert np.frombuffer(payload, np.float64).flags.aligned


@given(st.binary(max_size=2_000), st.lists(st.integers(1, 500), min_size=1, max_size=4))
def test_any_bytes_at_all_are_frames_or_an_error_of_the_protocol(said: bytes, pieces: list[int]) -> None:
    reader = FrameReader(limit_bytes=1000)
    try:
        frames = fed(reader, said, pieces)
    except FrameError:
        return
    read = sum(8 + len(head) + len(payload) for head, payload in frames)
    assert said.startswith(b"".join(b"".join(pack(head, [payload])) for head, payload in frames))
    assert reader.is_between_frames is (read == len(said))


@pytest.mark.parametrize(("head", "payload"), [(0, 1001), (1001, 0), (500, 501), (2**32 - 1, 2**32 - 1)])
def test_a_frame_beyond_the_limit_is_refused_at_its_announcement(head: int, payload: int) -> None:
    reader = FrameReader(limit_bytes=1000)
    with pytest.raises(FrameError, match=f"a frame of {head + payload} bytes is announced; 1000 are allowed"):
        fed(reader, struct.pack("<II", head, payload), [8])


def test_frames_before_one_that_is_too_large_come_first_because_they_may_raise_the_limit() -> None:
    reader = FrameReader(limit_bytes=1000)
    said = b"".join(pack(b"hello") + pack(b"large", [bytes(2000)]))
    reader.room()[: len(said)] = said
    assert [head for head, _ in reader.took(len(said))] == [b"hello"]
    assert reader.is_holding_back
    reader.limit_bytes = 3000
    assert [head for head, _ in reader.took(0)] == [b"large"]
    assert (reader.is_holding_back, reader.is_between_frames) == (False, True)


def test_a_frame_of_just_the_limit_is_read_and_a_message_beyond_it_not_packed() -> None:
    assert len(fed(FrameReader(limit_bytes=1000), b"".join(pack(bytes(400), [bytes(600)])), [64])) == 1
    half = memoryview(bytes(1)).cast("B")
    with pytest.raises(FrameError, match="can be sent at once"):
        pack(b"x", [_Long(half, LIMIT_BYTES)])  # type: ignore[list-item]


class _Long:
    """Stands for memory that nobody has."""

    def __init__(self, _data: memoryview, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


def test_a_sign_of_life_is_an_empty_frame() -> None:
    assert [(head, bytes(payload)) for head, payload in fed(FrameReader(), ALIVE * 2, [5])] == [(b"", b"")] * 2


def test_memory_of_any_form_is_taken_as_its_bytes() -> None:
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert bytes(flat(memoryview(numbers))) == numbers.tobytes()
    assert flat(memoryview(np.empty((0, 3), np.float32))) == b""
    assert flat(b"abc") == b"abc"


def test_a_preface_says_the_version_and_anything_else_is_told_from_it() -> None:
    assert len(preface()) == PREFACE_BYTES
    assert version_of(preface()) == VERSION
    assert version_of(preface(77)) == 77
    assert version_of(b"PRI * HTTP/2.0"[:PREFACE_BYTES]) is None


@pytest.mark.parametrize(
    ("theirs", "agreed"),
    [(VERSION, VERSION), (VERSION + 1, VERSION), (65535, VERSION), (OLDEST_VERSION, OLDEST_VERSION)],
)
def test_the_newest_version_that_both_speak_is_spoken(theirs: int, agreed: int) -> None:
    assert agreed_version(theirs) == agreed


def test_with_a_version_that_is_too_old_nothing_is_agreed_on() -> None:
    assert agreed_version(OLDEST_VERSION - 1) is None
