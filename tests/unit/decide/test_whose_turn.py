"""Whose turn it is: priorities, what is owed to those who have waited, and tenants within one priority."""

from __future__ import annotations

from dataclasses import dataclass

from infaas_controller.decide.turn import AGEING_S, AGEING_SHARE, OWED_EVERY, aged_rank, turn

NOW = 1_000.0


@dataclass(frozen=True)
class Head:
    rank: int
    head_deadline: float
    waiting_since: float = NOW
    tag: float = 0.0


def test_the_higher_priority_goes_first_and_within_one_the_earliest_deadline() -> None:
    critical, standard, sheddable = Head(0, NOW + 9), Head(1, NOW + 1), Head(2, NOW + 0.5)
    assert turn([standard, sheddable, critical], NOW, 0) == (critical, 1)
    assert turn([standard, Head(1, NOW + 0.9)], NOW, 0)[0].head_deadline == NOW + 0.9


def test_between_tenants_of_one_priority_who_was_served_least_goes_first() -> None:
    flood, other = Head(1, NOW + 0.01, tag=40.0), Head(1, NOW + 5.0, tag=7.0)
    assert turn([flood, other], NOW, 0)[0] is other
    assert turn([flood, other, Head(0, NOW + 9, tag=1e9)], NOW, 0)[0].rank == 0, "priorities are not shared"


def test_a_query_counts_as_one_priority_higher_for_each_part_of_its_time_that_it_waited() -> None:
    lasts_s = 0.4
    for parts, expected in ((0.0, 2), (0.99, 2), (1.0, 1), (1.99, 1), (2.0, 0), (3.9, 0)):
        since = NOW - parts * AGEING_SHARE * lasts_s - 1e-9
        assert aged_rank(Head(2, since + lasts_s, since), NOW) == expected, parts
    patient = Head(2, NOW + 100, waiting_since=NOW - AGEING_S - 1e-9)
    assert aged_rank(patient, NOW) == 1, "or for each stated time, if that is less"
    assert aged_rank(Head(2, NOW - 1.0, waiting_since=NOW - 1.0), NOW) == 0, "it never had any time"


def test_a_turn_that_is_owed_comes_once_in_so_many_and_goes_to_who_has_aged() -> None:
    critical = Head(0, NOW + 9)
    fresh, aged = Head(2, NOW + 9), Head(2, NOW + 0.1, waiting_since=NOW - 0.9)
    assert turn([critical, fresh], NOW, OWED_EVERY)[0] is critical, "nothing is owed yet"
    passed, served = 0, []
    for _ in range(3 * OWED_EVERY):
        head, passed = turn([critical, aged], NOW, passed)
        served.append(head)
    assert served.count(aged) == 3
    assert [n + 1 for n, head in enumerate(served) if head is aged] == [OWED_EVERY, 2 * OWED_EVERY, 3 * OWED_EVERY]


def test_a_turn_that_was_saved_up_is_one_turn() -> None:
    critical, aged = Head(0, NOW + 9), Head(1, NOW + 0.1, waiting_since=NOW - 0.9)
    passed = 0
    for _ in range(5 * OWED_EVERY):
        _, passed = turn([critical, Head(1, NOW + 9)], NOW, passed)
    first, passed = turn([critical, aged], NOW, passed)
    second, passed = turn([critical, aged], NOW, passed)
    assert (first, second) == (aged, critical)


def test_what_is_owed_to_a_priority_goes_to_its_earliest_deadline() -> None:
    """Not to whoever waited longest: within a priority a later deadline never goes first for that."""
    old, tight = Head(1, NOW + 25, waiting_since=NOW - 3 * AGEING_S), Head(1, NOW + 1)
    assert turn([Head(0, NOW + 9), old, tight], NOW, OWED_EVERY) == (tight, 0)


def test_alone_nobody_takes_a_turn_from_anyone() -> None:
    assert turn([Head(2, NOW + 1)], NOW, 4)[1] == 4
