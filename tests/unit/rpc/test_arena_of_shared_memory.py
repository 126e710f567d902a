"""Places in memory, whatever order they are taken and given back in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infaas.rpc.hop.arena import GRAIN_BYTES, Arena

PAGES = 16


@given(st.lists(st.one_of(st.integers(1, PAGES + 1), st.integers(-20, -1)), max_size=60))
def test_places_never_overlap_and_everything_given_back_can_be_taken_whole(steps: list[int]) -> None:
    """A positive step takes so many pages, a negative one gives back one of the places that are taken."""
    arena = Arena(PAGES * GRAIN_BYTES)
    taken: dict[int, int] = {}
    for step in steps:
        if step < 0 and taken:
            begin = sorted(taken)[step % len(taken)]
            del taken[begin]
            arena.give(begin * GRAIN_BYTES)
        elif step > 0:
            pages = {page for begin, size in taken.items() for page in range(begin, begin + size)}
            fits = [at for at in range(PAGES - step + 1) if pages.isdisjoint(range(at, at + step))]
            found = arena.take(step * GRAIN_BYTES - 1)
            assert found == (fits[0] * GRAIN_BYTES if fits else None)
            if found is not None:
                taken[found // GRAIN_BYTES] = step
        assert arena.places == len(taken)
    for begin in list(taken):
        arena.give(begin * GRAIN_BYTES)
    assert arena.take(PAGES * GRAIN_BYTES) == 0


def test_what_was_touched_is_remembered_until_it_is_forgotten() -> None:
    arena = Arena(PAGES * GRAIN_BYTES)
    first, second = arena.take(1), arena.take(2 * GRAIN_BYTES)
    assert (first, second) == (0, GRAIN_BYTES)
    arena.give(GRAIN_BYTES)
    assert arena.reach_bytes == 3 * GRAIN_BYTES
    with pytest.raises(ValueError, match="1 places are taken"):
        arena.forget(0)
    arena.give(0)
    arena.forget(4 * GRAIN_BYTES)
    assert (arena.reach_bytes, arena.places) == (3 * GRAIN_BYTES, 0)
    arena.forget(GRAIN_BYTES)
    assert arena.reach_bytes == GRAIN_BYTES


def test_a_place_that_was_not_taken_cannot_be_given() -> None:
    with pytest.raises(KeyError):
        Arena(GRAIN_BYTES).give(0)


def test_an_arena_smaller_than_a_page_has_no_room() -> None:
    assert Arena(GRAIN_BYTES - 1).take(1) is None
