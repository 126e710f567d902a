"""Which busy variants are loaded on which other workers, when and where, and what never is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.decide.spread import (
    BUSY,
    BUSY_BESIDE_EMPTY,
    HELD_S,
    IDLE_SHARE,
    Copy,
    Need,
    Place,
    Spread,
    SpreadMemory,
    plan_spread,
)

from infaas.domain.ids import VariantName, WorkerId

NOW = 1_000.0
V, OTHER, THIRD = VariantName("v"), VariantName("w"), VariantName("x")
W1, W2, W3 = WorkerId("w1"), WorkerId("w2"), WorkerId("w3")
NEEDS = {name: Need(threads=2, memory_bytes=100) for name in (V, OTHER, THIRD)}
BUSY_ON_W1 = (Copy(V, W1, 1.0),)


def place(
    worker: WorkerId, *, cores: int = 4, busy_cores: float = 0.0, free_bytes: int = 1_000, is_loading: bool = False,
    is_empty: bool = False,
) -> Place:  # fmt: skip
    return Place(worker, cores, busy_cores, free_bytes, is_loading, is_empty)


TWO = (place(W1), place(W2))


class Looks:
    """One after the other; times are from NOW on."""

    def __init__(self, needs: Mapping[VariantName, Need] = NEEDS) -> None:
        self.needs = needs
        self.memory = SpreadMemory()

    def look(
        self,
        at: float,
        copies: Sequence[Copy] = BUSY_ON_W1,
        places: Sequence[Place] = TWO,
        *,
        loading: Collection[VariantName] = (),
        banned: Collection[tuple[VariantName, WorkerId]] = (),
    ) -> list[tuple[VariantName, WorkerId]]:
        found, self.memory = plan_spread(copies, places, self.needs, loading, banned, self.memory, NOW + at)
        return [(one.variant, one.worker) for one in found]


def held(
    copies: Sequence[Copy] = BUSY_ON_W1,
    places: Sequence[Place] = TWO,
    *,
    needs: Mapping[VariantName, Need] = NEEDS,
    loading: Collection[VariantName] = (),
    banned: Collection[tuple[VariantName, WorkerId]] = (),
) -> list[tuple[VariantName, WorkerId]]:
    """What is loaded once this has been so for long enough."""
    looks = Looks(needs)
    assert looks.look(0, copies, places, loading=loading, banned=banned) == []
    return looks.look(HELD_S, copies, places, loading=loading, banned=banned)


# -- when


def test_a_variant_is_loaded_on_another_worker_once_it_has_been_busy_for_long_enough() -> None:
    looks = Looks()
    assert looks.look(0) == []
    assert looks.look(HELD_S - 0.125) == []
    assert looks.look(HELD_S) == [(V, W2)]


def test_a_pause_makes_the_time_count_anew() -> None:
    looks = Looks()
    looks.look(0)
    assert looks.look(2, [Copy(V, W1, BUSY - 0.01)]) == []
    assert looks.look(3) == []
    assert looks.look(3 + HELD_S - 0.125) == []
    assert looks.look(3 + HELD_S) == [(V, W2)]


@pytest.mark.parametrize(("share", "expected"), [(BUSY, [(V, W2)]), (BUSY - 0.01, [])])
def test_busy_is_who_runs_for_that_share_of_the_time_and_nobody_below(
    share: float, expected: list[tuple[VariantName, WorkerId]]
) -> None:
    assert held([Copy(V, W1, share)]) == expected


def test_the_average_of_all_its_copies_counts_not_the_busiest_one() -> None:
    three = (place(W1), place(W2), place(W3))
    assert held([Copy(V, W1, 1.0), Copy(V, W2, 0.25)], three) == []
    assert held([Copy(V, W1, 1.0), Copy(V, W2, 0.5)], three) == [(V, W3)]
    assert held([Copy(V, W1, 1.0), Copy(V, W1, 1.0), Copy(V, W2, 0.0)], three) == []


def test_after_a_load_the_time_counts_anew() -> None:
    looks, three = Looks(), (place(W1), place(W2), place(W3))
    looks.look(0, places=three)
    assert looks.look(HELD_S, places=three) == [(V, W2)]
    assert looks.memory == SpreadMemory()
    both = [*BUSY_ON_W1, Copy(V, W2, 1.0)]
    assert looks.look(HELD_S + 1, both, three) == []
    assert looks.look(2 * HELD_S, both, three) == []
    assert looks.look(HELD_S + 1 + HELD_S, both, three) == [(V, W3)]


def test_a_variant_that_is_on_its_way_somewhere_waits_for_that_and_others_do_not() -> None:
    assert held(loading=[V]) == []
    both = [*BUSY_ON_W1, Copy(OTHER, W1, 1.0)]
    assert held(both, loading=[V]) == [(OTHER, W2)]


def test_who_waited_for_a_place_gets_the_first_that_there_is() -> None:
    looks = Looks()
    for second in range(10):
        assert looks.look(second, places=[place(W1)]) == []
    assert looks.look(10) == [(V, W2)]


def test_what_serves_nowhere_any_more_is_forgotten() -> None:
    looks = Looks()
    looks.look(0)
    looks.look(1, [])
    assert looks.memory == SpreadMemory()


def test_what_may_not_be_loaded_at_all_is_not() -> None:
    assert held(needs={}) == []


# -- where


def test_a_worker_that_has_it_does_not_get_it_again() -> None:
    assert held(places=[place(W1)]) == []
    assert held([*BUSY_ON_W1, Copy(V, W2, 1.0)]) == []


def test_a_pair_that_is_banned_is_left_out_and_the_variant_goes_elsewhere() -> None:
    assert held(banned=[(V, W2)]) == []
    assert held(places=[*TWO, place(W3, busy_cores=1.0)], banned=[(V, W2)]) == [(V, W3)]
    assert held(banned=[(OTHER, W2), (V, W1)]) == [(V, W2)]


def test_the_place_with_the_most_idle_cores_is_taken_and_of_equal_ones_the_first_by_name() -> None:
    assert held(places=[place(W1), place(W2, busy_cores=1.5), place(W3, busy_cores=1.0)]) == [(V, W3)]
    assert held(places=[place(W2), place(W3, cores=8, busy_cores=3.0)]) == [(V, W3)], "cores, not their share"
    assert held(places=[place(W3), place(W2)]) == [(V, W2)]


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (place(W2, free_bytes=100), True),
        (place(W2, free_bytes=99), False),
        (place(W2, cores=2), True),
        (place(W2, cores=1), False),
        (place(W2, busy_cores=4 - 2 * IDLE_SHARE), True),
        (place(W2, busy_cores=4 - 2 * IDLE_SHARE + 0.125), False),
        (place(W2, is_loading=True), False),
    ],
)
def test_a_place_has_the_memory_all_the_cores_and_enough_idle_ones_and_does_not_load(
    there: Place, expected: bool
) -> None:
    assert held(places=[place(W1), there]) == ([(V, W2)] if expected else [])


@pytest.mark.parametrize(("share", "expected"), [(BUSY_BESIDE_EMPTY, [(V, W2)]), (BUSY_BESIDE_EMPTY - 0.01, [])])
def test_a_worker_that_has_nothing_takes_what_is_nearly_busy(
    share: float, expected: list[tuple[VariantName, WorkerId]]
) -> None:
    copies = [Copy(V, W1, share)]
    assert held(copies, [place(W1), place(W2, is_empty=True)]) == expected
    assert held(copies, [place(W1), place(W2), place(W3, busy_cores=3.0, is_empty=True)]) == [
        (name, W3) for name, _ in expected
    ]
    assert held(copies) == []


def test_how_long_it_is_nearly_busy_counts_from_then_on_and_anew_after_a_load() -> None:
    looks, copies = Looks(), [Copy(V, W1, 0.65)]
    places = [place(W1), place(W2, is_empty=True), place(W3, is_empty=True)]
    assert looks.look(0, copies, places) == []
    assert looks.look(HELD_S - 0.125, BUSY_ON_W1, places) == []
    assert looks.look(HELD_S, copies, places) == [(V, W2)]
    assert looks.memory == SpreadMemory()
    both = [*copies, Copy(V, W2, 0.65)]
    assert looks.look(HELD_S + 1, both, places) == []
    assert looks.look(2 * HELD_S + 1, both, places) == [(V, W3)]


def test_two_variants_do_not_go_to_one_worker_at_once() -> None:
    both = [*BUSY_ON_W1, Copy(OTHER, W1, 1.0)]
    assert held(both) == [(V, W2)]
    assert held(both, [*TWO, place(W3, busy_cores=1.0)]) == [(V, W2), (OTHER, W3)]


def test_who_found_no_place_is_first_to_get_one_later() -> None:
    looks, both = Looks(), [*BUSY_ON_W1, Copy(OTHER, W1, 1.0)]
    looks.look(0, both)
    assert looks.look(HELD_S, both) == [(V, W2)]
    there = [*both, Copy(V, W2, 1.0)]
    assert looks.look(HELD_S + 1, there, loading=[]) == [(OTHER, W2)]


def test_the_reason_has_the_figures() -> None:
    copies = [*BUSY_ON_W1, Copy(V, W3, 0.8)]
    memory = SpreadMemory({V: NOW - HELD_S})
    found, _ = plan_spread(copies, [place(W2, busy_cores=0.5)], NEEDS, (), (), memory, NOW)
    reason = "its 2 instances run 90% of the time on average; 0.5 of 4 cores are in use here"
    assert found == [Spread(V, W2, reason)]


# -- whatever is seen

Names, Workers = st.sampled_from([V, OTHER, THIRD]), st.sampled_from([W1, W2, W3])
Copies = st.lists(st.builds(Copy, Names, Workers, st.sampled_from([0.0, 0.5, 0.75, 1.0, 1.0, 1.0])), max_size=5)
Needs = st.dictionaries(
    Names, st.builds(Need, threads=st.integers(1, 4), memory_bytes=st.integers(0, 300)), min_size=1
)  # fmt: skip
Places = st.lists(
    st.builds(
        Place, Workers, cores=st.integers(1, 8), busy_cores=st.floats(0.0, 8.0), free_bytes=st.integers(-100, 600),
        is_loading=st.sampled_from([False, False, False, True]), is_empty=st.booleans(),
    ),
    unique_by=lambda one: one.worker, max_size=3,
)  # fmt: skip


class Situation:
    """A gap, then what is seen."""

    def __init__(
        self,
        gap_s: float,
        copies: list[Copy],
        places: list[Place],
        loading: set[VariantName],
        banned: set[tuple[VariantName, WorkerId]],
    ) -> None:
        self.gap_s = gap_s
        self.copies = copies
        self.places = {one.worker: one for one in places}
        self.loading = loading
        self.banned = banned

    def share(self, variant: VariantName) -> float:
        return fmean([one.busy for one in self.copies if one.variant == variant] or [0.0])

    def may_take(self, place: Place, variant: VariantName, need: Need) -> bool:
        has_it = any((one.variant, one.worker) == (variant, place.worker) for one in self.copies)
        has_room = need.memory_bytes <= place.free_bytes and need.threads <= place.cores
        is_idle = place.cores - place.busy_cores >= IDLE_SHARE * need.threads
        is_barred = place.is_loading or (variant, place.worker) in self.banned
        return has_room and is_idle and not has_it and not is_barred


Situations = st.builds(
    Situation,
    st.sampled_from([0.5, 1.0, 1.0, HELD_S]),
    Copies,
    Places,
    st.sets(Names, max_size=1),
    st.sets(st.tuples(Names, Workers), max_size=2),
)


@given(
    needs=Needs,
    runs=st.lists(st.tuples(Situations, st.integers(1, 6)), min_size=1, max_size=4),
)
def test_only_what_has_been_busy_is_loaded_and_only_where_it_fits_and_whoever_waits_has_nowhere_to_go(
    needs: Mapping[VariantName, Need], runs: Sequence[tuple[Situation, int]]
) -> None:
    """Each situation lasts for some looks; times are multiples of a half, so that their sums are exact."""
    looks, at = Looks(needs), 0.0
    since: dict[float, dict[VariantName, float]] = {BUSY: {}, BUSY_BESIDE_EMPTY: {}}
    for seen in [seen for seen, count in runs for _ in range(count)]:
        at += seen.gap_s
        due: dict[float, set[VariantName]] = {}
        for least, known in since.items():
            busy = {name for name in needs if seen.share(name) >= least and name not in seen.loading}
            since[least] = {name: known.get(name, at) for name in busy}
            due[least] = {name for name in busy if at - since[least][name] >= HELD_S}

        def may_take(
            place: Place, name: VariantName, seen: Situation = seen, due: Mapping[float, set[VariantName]] = due
        ) -> bool:
            is_due = name in due[BUSY_BESIDE_EMPTY if place.is_empty else BUSY]
            return is_due and seen.may_take(place, name, needs[name])

        found = looks.look(
            at, seen.copies, list(seen.places.values()), loading=seen.loading, banned=seen.banned
        )  # fmt: skip
        variants, workers = {name for name, _ in found}, {worker for _, worker in found}
        assert len(variants) == len(workers) == len(found)
        assert all(may_take(seen.places[worker], name) for name, worker in found)
        for name in set(needs) - variants:
            left = [one for one in seen.places.values() if one.worker not in workers]
            assert not any(may_take(one, name) for one in left)
        for name in variants:
            for known in since.values():
                known.pop(name, None)
