"""A connection is read while neither the flow of what is read nor a long turn of the loop speaks against it."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.api.http_transport import JoiningTransport


class Read(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.is_read = True
        self.closes = False

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        assert not self.closes, "uvloop need not like it"
        self.is_read = True

    def is_closing(self) -> bool:
        return self.closes


def a_connection() -> tuple[Read, JoiningTransport]:
    transport, loop = Read(), asyncio.new_event_loop()
    loop.close()
    return transport, JoiningTransport(transport, loop, lambda: True)


@given(st.lists(st.sampled_from(["pause_reading", "resume_reading", "rest", "wake"]), max_size=12))
def test_either_reason_is_enough_to_pause_and_neither_undoes_the_other(steps: list[str]) -> None:
    transport, joining = a_connection()
    is_paused = is_resting = False
    for step in steps:
        getattr(joining, step)()
        is_paused = {"pause_reading": True, "resume_reading": False}.get(step, is_paused)
        is_resting = {"rest": True, "wake": False}.get(step, is_resting)
        assert transport.is_read is not (is_paused or is_resting)


def test_one_that_closes_is_not_woken() -> None:
    transport, joining = a_connection()
    joining.rest()
    transport.closes = True
    joining.wake()
    assert not transport.is_read
