"""Which workers the view shows when the store and the streams disagree."""

from __future__ import annotations

import pytest

from infaas.domain.ids import WorkerId
from infaas.domain.lifecycle import WorkerState
from infaas.store.workers import WorkerRoll
from infaas.testing.builders import a_worker

W1 = WorkerId("w1")


@pytest.fixture
def roll() -> WorkerRoll:
    """Lists an empty store of its first epoch."""
    roll = WorkerRoll(grace_s=10.0)
    roll.listed([], is_same_epoch=False, now=0.0)
    return roll


def test_a_stored_worker_appears_and_a_deleted_one_goes(roll: WorkerRoll) -> None:
    assert roll.stored(a_worker("w1"))
    assert roll.records == {W1: a_worker("w1")}
    assert not roll.stored(a_worker("w1")), "the same record again is no news"
    assert roll.deleted(W1)
    assert roll.records == {}
    assert not roll.deleted(W1)


def test_a_connected_stream_outweighs_what_the_store_says(roll: WorkerRoll) -> None:
    roll.stored(a_worker("w1"))
    assert roll.reported(a_worker("w1", state=WorkerState.DRAINING))
    assert not roll.stored(a_worker("w1"))
    assert roll.records[W1].state is WorkerState.DRAINING


def test_expiry_in_the_store_waits_for_the_loss_of_the_stream(roll: WorkerRoll) -> None:
    roll.stored(a_worker("w1"))
    roll.reported(a_worker("w1"))
    assert not roll.deleted(W1)
    assert W1 in roll.records
    assert roll.stream_lost(W1, 1.0)
    assert roll.records == {}


def test_losing_the_stream_keeps_a_worker_that_the_store_holds(roll: WorkerRoll) -> None:
    roll.stored(a_worker("w1"))
    roll.reported(a_worker("w1", pid=7))
    assert not roll.stream_lost(W1, 1.0)
    assert roll.records[W1].pid == 7, "the last word of the stream stays until the store has a newer one"
    assert roll.stored(a_worker("w1", pid=8))
    assert roll.deleted(W1)


def test_another_epoch_takes_nothing_away_until_refilled_and_then_deleted(roll: WorkerRoll) -> None:
    roll.stored(a_worker("w1"))
    assert not roll.listed([], is_same_epoch=False, now=5.0)
    assert not roll.lapsed(1e6), "never streamed: nothing speaks against it"
    assert not roll.listed([], is_same_epoch=True, now=6.0), "not told by the new epoch: still unclear"
    assert W1 in roll.records
    roll.stored(a_worker("w1"))
    assert roll.deleted(W1)
    assert roll.records == {}


def test_a_worker_lost_by_both_sources_lapses_after_the_grace(roll: WorkerRoll) -> None:
    roll.stored(a_worker("w1"))
    roll.reported(a_worker("w1"))
    roll.listed([], is_same_epoch=False, now=5.0)
    assert not roll.lapsed(100.0), "its stream lives"
    assert not roll.stream_lost(W1, 100.0)
    assert not roll.lapsed(109.9)
    assert roll.lapsed(110.0)
    assert roll.records == {}
    assert not roll.lapsed(1e6)


def test_a_worker_that_comes_back_within_the_grace_stays(roll: WorkerRoll) -> None:
    roll.stored(a_worker("w1"))
    roll.reported(a_worker("w1"))
    roll.listed([], is_same_epoch=False, now=5.0)
    roll.stream_lost(W1, 6.0)
    roll.reported(a_worker("w1"))
    assert not roll.lapsed(1e6)
    roll.stream_lost(W1, 1e6)
    roll.stored(a_worker("w1"))
    assert not roll.lapsed(2e6)


def test_a_listing_of_the_same_epoch_removes_what_it_lacks(roll: WorkerRoll) -> None:
    for worker in ("w1", "w2", "w3"):
        roll.stored(a_worker(worker))
    roll.reported(a_worker("w2"))
    assert roll.listed([WorkerId("w3")], is_same_epoch=True, now=1.0)
    assert set(roll.records) == {"w2", "w3"}
    assert roll.stream_lost(WorkerId("w2"), 2.0)


def test_before_the_first_listing_a_lost_stream_proves_nothing() -> None:
    roll = WorkerRoll(grace_s=10.0)
    roll.reported(a_worker("w1"))
    assert not roll.stream_lost(W1, 0.0)
    assert W1 in roll.records


def test_losing_a_stream_to_an_unknown_worker_is_no_news(roll: WorkerRoll) -> None:
    assert not roll.stream_lost(W1, 0.0)
