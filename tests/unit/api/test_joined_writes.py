"""What is written leaves in order, whatever its sizes; what is large leaves as it is."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.api.http_transport import JOIN_BYTES, JoiningTransport


class Written(asyncio.Transport):
    """Keeps the very objects that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes | memoryview] = []

    def write(self, data: object) -> None:
        assert isinstance(data, bytes | memoryview)
        self.pieces.append(data)

    def is_closing(self) -> bool:
        return False


async def written(turns: list[list[bytes | memoryview]]) -> list[bytes | memoryview]:
    transport = Written()
    joining = JoiningTransport(transport, asyncio.get_running_loop(), lambda: True)
    for turn in turns:
        for piece in turn:
            joining.write(piece)
        await asyncio.sleep(0)
    joining.close()
    return transport.pieces


SIZES = st.sampled_from([1, 100, JOIN_BYTES, JOIN_BYTES + 1, 2 * JOIN_BYTES])


@given(st.lists(st.lists(st.tuples(SIZES, st.booleans()), max_size=4), max_size=3))
def test_bytes_leave_in_the_order_of_their_writes(turns: list[list[tuple[int, bool]]]) -> None:
    letters = iter(b"abcdefghijklmnopqrstuvwxyz")
    given_pieces: list[list[bytes | memoryview]] = []
    for turn in turns:
        made: list[bytes | memoryview] = []
        for size, is_view in turn:
            data = bytes((next(letters),)) * size
            made.append(memoryview(data) if is_view else data)
        given_pieces.append(made)

    pieces = asyncio.run(written(given_pieces))

    assert b"".join(pieces) == b"".join(piece for turn in given_pieces for piece in turn)
    large = [piece for turn in given_pieces for piece in turn if len(piece) > JOIN_BYTES]
    assert all(any(piece is one for one in pieces) for piece in large)


def test_header_and_body_of_a_small_answer_leave_as_one() -> None:
    assert asyncio.run(written([[b"head", b"body"]])) == [b"headbody"]
