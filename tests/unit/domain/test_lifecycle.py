"""The transition tables: whole, with an end, and without a way back from it."""

from __future__ import annotations

from enum import StrEnum

import pytest

from infaas.domain.lifecycle import (
    BUILD_TRANSITIONS,
    INSTANCE_TRANSITIONS,
    WORKER_TRANSITIONS,
    BuildState,
    InstanceState,
    WorkerState,
    is_allowed,
)

TABLES = [
    (InstanceState, INSTANCE_TRANSITIONS, InstanceState.LOADING),
    (WorkerState, WORKER_TRANSITIONS, WorkerState.STARTING),
    (BuildState, BUILD_TRANSITIONS, BuildState.RECEIVED),
]
Table = tuple[type[StrEnum], dict[StrEnum, frozenset[StrEnum]], StrEnum]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table[0].__name__)
def test_every_state_is_in_its_table_reachable_and_no_state_follows_itself(table: Table) -> None:
    states, arrows, first = table
    assert set(arrows) == set(states)
    assert all(state not in after for state, after in arrows.items())
    reached = {first}
    while more := {after for state in reached for after in arrows[state]} - reached:
        reached |= more
    assert reached == set(states)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table[0].__name__)
def test_is_allowed_says_what_the_table_says(table: Table) -> None:
    states, arrows, _ = table
    for before in states:
        for after in states:
            assert is_allowed(before, after) == (after in arrows[before])


@pytest.mark.parametrize(("table", "end"), [(TABLES[0], InstanceState.GONE), (TABLES[1], WorkerState.GONE)])
def test_gone_is_the_end_and_can_be_reached_from_everywhere(table: Table, end: StrEnum) -> None:
    _, arrows, _ = table
    assert arrows[end] == frozenset()
    for start in arrows:
        reached = {start}
        while more := {after for state in reached for after in arrows[state]} - reached:
            reached |= more
        assert end in reached


def test_an_instance_serves_only_after_loading_and_leaves_only_through_draining_or_failure() -> None:
    assert [s for s in InstanceState if is_allowed(s, InstanceState.READY)] == [InstanceState.LOADING]
    assert not is_allowed(InstanceState.READY, InstanceState.GONE)
    assert not is_allowed(InstanceState.DRAINING, InstanceState.READY)


def test_states_of_two_tables_do_not_mix() -> None:
    assert not is_allowed(InstanceState.READY, BuildState.RETIRED)
    with pytest.raises(TypeError, match="no transition table"):
        is_allowed(_Other.A, _Other.A)


class _Other(StrEnum):
    A = "A"
