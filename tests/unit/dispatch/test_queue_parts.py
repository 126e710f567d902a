"""The parts under the engine: batch forming, turns, curves, predictions, quarantine, pauses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.decide.curve import (
    BATCH_COST_S,
    DEEP_LEAST,
    DEEPER_S,
    PAYS,
    PAYS_UNSEEN,
    SMALL_BESIDE,
    UNSEEN_S,
    Curve,
    preferred_batch,
)
from infaas_controller.decide.form import MAX_BATCH_BYTES, Limits, form
from infaas_controller.lanes import urgency_of
from infaas_controller.ledger import Ledger
from infaas_controller.liveness import LONGEST_PAUSE_S, redial_pause_s
from infaas_controller.observed import FRESH_S, PACE_MARGIN, PRIOR_WEIGHT, WINDOW, Pace, Recent
from infaas_controller.quarantine import DIGESTED_AT_ONCE_BYTES, Quarantine, RetryBudget, digest
from infaas_controller.queues import Ticket

from infaas.domain.lifecycle import InstanceState
from infaas.domain.query import Priority
from infaas.domain.tensor import Datatype, Tensor
from infaas.domain.variant import Runtime
from infaas.testing.builders import a_profile, a_query, a_variant, a_view, a_worker, an_instance

NOW = 1_000.0


@dataclass(frozen=True, eq=False)
class Entry:
    deadline: float
    items: int = 1
    input_bytes: int = 256


def limits(start_s: float = 0.0, correction: float = 1.0, **given: object) -> Limits:
    return Limits(start_s, 0.0, lambda _: correction, lambda _: correction, **given)  # type: ignore[arg-type]


MEMORY_BOUND = Curve(a_variant("m", p95_ms=10, per_item_ms=0.1))
CPU_BOUND = Curve(a_variant("c", p95_ms=10, per_item_ms=10))


def test_a_batch_grows_only_where_it_pays() -> None:
    queue = [Entry(NOW + 9) for _ in range(40)]
    assert form(queue, MEMORY_BOUND, limits(), NOW).items > 20
    assert form(queue, CPU_BOUND, limits(), NOW).items == 1


def test_where_runs_are_short_a_batch_grows_until_it_has_nearly_all_that_batching_gives() -> None:
    short, long = (Curve(a_variant("c", p95_ms=ms, per_item_ms=ms)) for ms in (1, 5))
    shares = [short.preferred / (short.mean_s[short.preferred] + BATCH_COST_S), 32 / (short.mean_s[32] + BATCH_COST_S)]
    assert PAYS < shares[0] / shares[1] < PAYS_UNSEEN, "ten milliseconds are the bound here"
    assert short.mean_s[short.preferred] <= UNSEEN_S < short.mean_s[short.preferred + 1]
    assert long.preferred == 2, "1.5 ms of its own in each batch is too much for one item of 5 ms"
    assert MEMORY_BOUND.mean_s[1] < UNSEEN_S < MEMORY_BOUND.mean_s[MEMORY_BOUND.preferred], "it pays beyond that"


def test_a_batch_stops_growing_where_the_tightest_deadline_would_be_missed() -> None:
    queue = [Entry(NOW + 0.0112), *(Entry(NOW + 9) for _ in range(30))]
    formed = form(queue, MEMORY_BOUND, limits(), NOW)
    assert NOW + MEMORY_BOUND.p95_s[formed.items] <= NOW + 0.0112 < NOW + MEMORY_BOUND.p95_s[formed.items + 1]
    assert formed.left is not None


def test_items_are_counted_and_a_query_is_never_split() -> None:
    queue = [Entry(NOW + 9, 20), Entry(NOW + 9, 20), Entry(NOW + 9, 1)]
    formed = form(queue, MEMORY_BOUND, limits(), NOW)
    assert (formed.items, formed.left) == (20, queue[1])


def test_a_batch_holds_a_bounded_number_of_bytes_and_the_first_query_always_goes() -> None:
    large = [Entry(NOW + 9, input_bytes=MAX_BATCH_BYTES // 2) for _ in range(3)]
    formed = form(large, MEMORY_BOUND, limits(), NOW)
    assert (formed.batch, formed.left) == (large[:2], large[2])
    huge = [Entry(NOW + 9, input_bytes=2 * MAX_BATCH_BYTES), Entry(NOW + 9)]
    formed = form(huge, MEMORY_BOUND, limits(), NOW)
    assert (formed.batch, formed.left) == (huge[:1], huge[1])


def test_expired_and_hopeless_queries_do_not_take_a_place() -> None:
    expired, hopeless, fine = Entry(NOW - 1), Entry(NOW + 0.004), Entry(NOW + 1)
    formed = form([expired, hopeless, fine], MEMORY_BOUND, limits(), NOW)
    assert (formed.expired, formed.late, formed.batch) == ([expired], [hopeless], [fine])
    bound = form([hopeless], MEMORY_BOUND, limits(drops_late=False), NOW)
    assert bound.batch == [hopeless]


def test_what_is_observed_counts_more_than_the_profile() -> None:
    entry = Entry(NOW + 0.015)
    assert form([entry], MEMORY_BOUND, limits(), NOW).batch == [entry]
    assert form([entry], MEMORY_BOUND, limits(correction=3.0), NOW).late == [entry]


@given(st.lists(st.tuples(st.floats(0.001, 5), st.integers(1, 32)), max_size=60), st.floats(0, 0.5))
def test_formed_batches_keep_limit_order_and_account_for_every_query_seen(
    entries: list[tuple[float, int]], start_s: float
) -> None:
    queue = sorted((Entry(NOW + after - 1, items) for after, items in entries), key=lambda e: e.deadline)
    formed = form(queue, MEMORY_BOUND, limits(start_s), NOW)
    assert formed.items == sum(e.items for e in formed.batch) <= 32
    seen = len(formed.batch) + len(formed.expired) + len(formed.late) + (formed.left is not None)
    assert seen <= len(queue)
    kept = [e for e in queue[:seen] if e not in formed.expired and e not in formed.late and e is not formed.left]
    assert kept == formed.batch
    assert all(e.deadline > NOW for e in formed.batch)


def test_the_preferred_batch_counts_the_cost_of_the_hop() -> None:
    linear = [0.0, *(0.001 * n for n in range(1, 33))]
    assert preferred_batch(linear, 0.0) == 1
    assert preferred_batch(linear, 0.001) > 6


def test_a_few_more_than_pay_go_along_where_they_would_be_all_that_is_left() -> None:
    preferred = MEMORY_BOUND.preferred
    assert 20 < preferred < MEMORY_BOUND.hard_limit
    few = preferred + min(preferred // SMALL_BESIDE, MEMORY_BOUND.hard_limit - preferred)
    assert MEMORY_BOUND.most_of(few) == few
    assert MEMORY_BOUND.most_of(preferred - 1) == preferred
    assert MEMORY_BOUND.most_of(MEMORY_BOUND.hard_limit + 1) == preferred, "more than a run can hold"
    assert MEMORY_BOUND.most_of(2 * preferred - 1) == preferred
    assert CPU_BOUND.most_of(3) == CPU_BOUND.preferred == 1, "what batching does not help is not batched"
    queue = [Entry(NOW + 9) for _ in range(few)]
    assert form(queue, MEMORY_BOUND, limits(most=few), NOW).items == few
    assert form(queue, MEMORY_BOUND, limits(), NOW).items == preferred


def test_a_deep_queue_is_run_in_batches_that_lose_next_to_nothing_as_long_as_those_are_short() -> None:
    short = Curve(a_variant("c", p95_ms=1, per_item_ms=1))
    assert short.preferred < short.full <= short.hard_limit
    assert short.most_of(2 * short.preferred - 1) == short.preferred
    assert short.most_of(2 * short.preferred) == 2 * short.preferred
    assert short.most_of(1_000) == short.full
    assert short.mean_s[short.full] <= short.mean_s[short.preferred] + DEEPER_S
    slow = Curve(a_variant("s", p95_ms=18, per_item_ms=18))
    assert (slow.preferred, slow.full) == (1, 2), "another run of 18 ms in front of what is urgent, and no more"
    assert (slow.most_of(DEEP_LEAST - 1), slow.most_of(DEEP_LEAST), slow.most_of(1_000)) == (1, 2, 2)
    fixed = Curve(a_variant("f", fixed_batch=4))
    assert fixed.most_of(100) == fixed.full == 4


def test_a_curve_follows_the_portions_in_which_its_variant_is_run() -> None:
    point = a_profile(p95_ms=10, per_item_ms=10).latency[0]
    seconds = {1: 0.010, 2: 0.020, 4: 0.040, 8: 0.100, 16: 0.210}
    latency = tuple(replace(point, batch=n, mean_s=s, p50_s=s, p95_s=1.1 * s) for n, s in seconds.items())
    variant = a_variant("v", max_batch=16, profile=replace(a_profile(), latency=latency))
    curve = Curve(variant)
    assert [variant.portion(items) for items in (1, 4, 5, 8, 16)] == [1, 4, 4, 4, 4]
    assert (curve.mean_s[8], curve.mean_s[13]) == pytest.approx((0.080, 0.130))
    assert curve.p95_s[13] == pytest.approx(3 * 0.040 + 0.011), "one of them may take long, hardly all"
    elsewhere = replace(variant, runtime=Runtime.TRITON)
    assert (elsewhere.portion(16), Curve(elsewhere).mean_s[8]) == (16, 0.100)


def test_what_is_just_above_a_portion_is_cut_only_where_that_takes_less() -> None:
    point = a_profile(p95_ms=10, per_item_ms=10).latency[0]
    seconds = {1: 0.005, 2: 0.0055, 4: 0.006, 8: 0.007, 16: 0.016}
    latency = tuple(replace(point, batch=n, mean_s=s, p50_s=s, p95_s=s) for n, s in seconds.items())
    variant = a_variant("v", max_batch=16, profile=replace(a_profile(), latency=latency))
    assert [variant.portion(items) for items in (8, 9, 12, 16)] == [8, 9, 12, 8]
    assert (variant.run_s(9), variant.run_s(16)) == pytest.approx((0.008125, 0.014))


# -- ledger


def urgency(rank: int, latency_ms: float | None = None) -> int:
    priority = next(each for each in Priority if each.rank == rank)
    return urgency_of(a_query(priority=priority, latency_ms=latency_ms).requirements)


def a_ledger(cores: int = 2, state: InstanceState = InstanceState.READY) -> Ledger:
    variants = [a_variant("v", p95_ms=10, per_item_ms=10), a_variant("wide", p95_ms=10, per_item_ms=10, threads=2)]
    instances = [an_instance("i1", variant="v", state=state), an_instance("i2", variant="v"),
                 an_instance("i3", variant="wide")]  # fmt: skip
    ledger = Ledger()
    ledger.sync(a_view(variants=variants, workers=[a_worker("w1", instances=instances, cores=cores)]), NOW)
    return ledger


def wait_s(ledger: Ledger, instance: str, rank: int = 1, latency_ms: float | None = None) -> float:
    """Beyond what an idle instance takes."""
    lane = ledger.lanes[instance]  # type: ignore[index]
    return ledger.predict(lane, urgency(rank, latency_ms), 1, NOW) - NOW - 0.010 - lane.worker.hop.at(NOW)


def test_promised_work_of_the_same_or_higher_priority_is_waited_for() -> None:
    ledger = a_ledger()
    lane = ledger.lanes["i1"]  # type: ignore[index]
    ledger.reserve(lane, urgency(1), 10)
    assert wait_s(ledger, "i1", rank=0) == pytest.approx(0.0)
    assert wait_s(ledger, "i1", rank=1) == pytest.approx(10 * 0.0092)
    assert wait_s(ledger, "i1", rank=2) == pytest.approx(10 * 0.0092)
    assert wait_s(ledger, "i1", rank=1, latency_ms=500) == pytest.approx(0.0), "it would run before all of them"
    assert wait_s(ledger, "i1", rank=1, latency_ms=60_000) == pytest.approx(10 * 0.0092)
    ledger.release(lane, urgency(1), 10)
    assert wait_s(ledger, "i1") == pytest.approx(0.0)
    ledger.reserve(lane, urgency(1, 200), 10)
    for latency_ms in (None, 100, 500):
        assert wait_s(ledger, "i1", latency_ms=latency_ms) == pytest.approx(10 * 0.0092)
    with pytest.raises(AssertionError, match="released more"):
        ledger.release(lane, urgency(1), 1)


def test_queries_of_different_classes_never_share_a_batch_so_each_class_ahead_is_a_run_of_its_own() -> None:
    ledger = Ledger()
    variants = [a_variant("v", p95_ms=10, per_item_ms=0.1)]
    ledger.sync(a_view(variants=variants, workers=[a_worker("w1", instances=[an_instance("i1", variant="v")])]), NOW)
    lane = ledger.lanes["i1"]  # type: ignore[index]
    assert lane.curve is not None
    ledger.reserve(lane, urgency(1), 12)
    ledger.class_came(lane, 1)
    together = wait_s(ledger, "i1")
    assert together < 0.002, "all of one class would run with it"
    for _ in range(4):
        ledger.class_came(lane, 1)
    assert wait_s(ledger, "i1") == pytest.approx(4 * lane.curve.mean_s[3])
    for _ in range(40):
        ledger.class_came(lane, 1)
    assert wait_s(ledger, "i1") == pytest.approx(12 * lane.curve.mean_s[1]), "no more runs than items"
    assert wait_s(ledger, "i1", rank=0) == pytest.approx(0.0)


def test_other_instances_are_waited_for_only_where_cores_are_short() -> None:
    ledger = a_ledger(cores=2)
    ledger.reserve(ledger.lanes["i2"], urgency(1), 10)  # type: ignore[index]
    assert wait_s(ledger, "i1") == pytest.approx(0.0)
    assert wait_s(ledger, "i3") == pytest.approx(0.092)
    narrow = a_ledger(cores=1)
    narrow.reserve(narrow.lanes["i2"], urgency(1), 10)  # type: ignore[index]
    assert wait_s(narrow, "i1") == pytest.approx(0.092)


def test_a_batch_that_is_overdue_is_expected_to_take_as_long_again() -> None:
    ledger = a_ledger()
    lane = ledger.lanes["i1"]  # type: ignore[index]
    ledger.sent(lane, 1, 1, NOW - 1.0)
    ledger.started(lane, 1, NOW - 1.0)
    assert wait_s(ledger, "i1") == pytest.approx(1.0 - 0.0092)
    ledger.done(lane, 1)
    assert ledger.is_settled()


def test_what_is_left_of_a_load_is_waited_for() -> None:
    assert wait_s(a_ledger(state=InstanceState.LOADING), "i1") == pytest.approx(0.1)


def test_a_promise_follows_what_most_runs_stay_within_and_not_one_odd_run() -> None:
    ledger = a_ledger()
    lane = ledger.lanes["i1"]  # type: ignore[index]
    assert lane.curve is not None
    ledger.seen.ran(lane.curve, 1, 0.030, NOW)
    assert ledger.seen.promised(lane.variant, 1, NOW) == 1.0
    for _ in range(4):
        ledger.seen.ran(lane.curve, 1, 0.030, NOW)
    assert ledger.seen.promised(lane.variant, 1, NOW) == pytest.approx(3.0)
    assert ledger.predict(lane, urgency(1), 1, NOW) == pytest.approx(NOW + 0.030 + lane.worker.hop.at(NOW))
    assert 1.0 < ledger.seen.usual(lane.variant, 1, NOW) < 2.0, "the work ahead is reckoned with a mean"
    assert ledger.seen.promised(lane.variant, 8, NOW) == 1.0, "other sizes are other runs"


def test_what_was_learnt_is_bounded_and_ages_back_to_the_profile_while_nothing_runs() -> None:
    ledger = a_ledger()
    lane = ledger.lanes["i1"]  # type: ignore[index]
    assert lane.curve is not None
    for _ in range(200):
        ledger.seen.ran(lane.curve, 1, 100.0, NOW)
    assert ledger.seen.promised(lane.variant, 1, NOW + 1) == pytest.approx(4.0)
    assert ledger.seen.promised(lane.variant, 1, NOW + 7) == pytest.approx(2.5)
    assert ledger.seen.promised(lane.variant, 1, NOW + 100) == pytest.approx(1.0, abs=1e-4)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=200), st.floats(0, 1))
def test_a_window_knows_the_quantiles_of_its_last_values(values: list[float], share: float) -> None:
    recent = Recent(5.0)
    for value in values:
        recent.add(value)
    last = sorted([*[5.0] * PRIOR_WEIGHT, *values][-WINDOW:])
    assert recent.quantile(share) == last[int(share * (len(last) - 1))]


def test_what_the_way_to_a_worker_costs_is_remembered_when_its_stream_is_lost() -> None:
    ledger = a_ledger()
    lane = ledger.lanes["i1"]  # type: ignore[index]
    for _ in range(50):
        lane.worker.hop.add(0.003, NOW)
    record, view = lane.worker.record, a_view(workers=[lane.worker.record])
    ledger.worker_lost(record.id)
    ledger.sync(view, NOW)
    assert ledger.decks[record.id].hop.at(NOW) == pytest.approx(0.003)


def test_batches_of_other_controllers_are_counted_from_the_workers_report_for_a_while() -> None:
    ledger = a_ledger()
    ledger.reported_load(ledger.lanes["i1"], 2, NOW)  # type: ignore[index]
    assert wait_s(ledger, "i1") > 0.015
    lane = ledger.lanes["i1"]  # type: ignore[index]
    assert lane.free_at(NOW + 2.0) == NOW + 2.0


def test_beside_what_others_have_at_an_instance_one_batch_of_ours_may_wait_there() -> None:
    ledger = a_ledger()
    lane = ledger.lanes["i1"]  # type: ignore[index]
    assert lane.free_slots == 2
    ledger.others_hold(lane, 4, NOW)
    assert lane.free_slots == 1, "the worker cannot choose ours if none is there"
    ledger.sent(lane, 1, 1, NOW)
    assert lane.free_slots == 0
    ledger.started(lane, 1, NOW)
    assert lane.free_slots == 1
    ledger.sent(lane, 2, 1, NOW)
    assert lane.free_slots == 0
    ledger.others_hold(lane, 0, NOW)
    ledger.done(lane, 1)
    assert lane.free_slots == 1


def test_a_word_on_others_that_grows_old_frees_no_slot_and_keeps_none() -> None:
    ledger = a_ledger()
    lane = ledger.lanes["i1"]  # type: ignore[index]
    ledger.others_hold(lane, 4, NOW)
    ledger.sent(lane, 1, 1, NOW)
    assert not lane.has_foreign(NOW + 2.0), "predictions go by it no more"
    assert lane.free_slots == 0, "they may still be there"
    ledger.started(lane, 1, NOW + 2.0)
    assert lane.free_slots == 1, "the instance never stands still for them"
    ledger.reported_load(lane, 1, NOW + 2.0)
    assert (lane.foreign, lane.free_slots) == (0, 1), "our own is all that is there"
    ledger.done(lane, 1)
    assert lane.free_slots == 2


def test_an_instance_that_runs_several_batches_at_once_is_shared_as_its_slots_are() -> None:
    ledger = a_ledger()
    lane = ledger.lanes["i1"]  # type: ignore[index]
    lane.slots = 5
    ledger.others_hold(lane, 2, NOW)
    for number in range(1, 6):
        assert lane.free_slots == 1
        ledger.sent(lane, number, 1, NOW)
        assert lane.free_slots == 0
        ledger.started(lane, number, NOW)
    assert lane.free_slots == 0


def test_batches_of_other_controllers_keep_cores_from_instances_beside_theirs_for_a_while() -> None:
    ledger = a_ledger(cores=1)
    busy = ledger.lanes["i2"]  # type: ignore[index]
    ledger.others_hold(busy, 3, NOW)
    assert wait_s(ledger, "i1") == pytest.approx(busy.free_at(NOW) - NOW)
    assert wait_s(ledger, "i1") > 0.02
    assert busy.worker.utilisation(NOW) > 0.02
    ledger.others_hold(busy, 0, NOW)
    assert wait_s(ledger, "i1") == pytest.approx(0.0)
    ledger.others_hold(busy, 3, NOW)
    later = NOW + 2.0
    assert ledger.predict(ledger.lanes["i1"], urgency(1), 1, later) == pytest.approx(  # type: ignore[index]
        later + ledger.predict(ledger.lanes["i1"], urgency(1), 1, NOW + 3.0) - NOW - 3.0  # type: ignore[index]
    )
    assert ledger.is_settled(), "they are nobody's promise here"


# -- quarantine, budget, pauses


def test_the_quarantine_knows_an_input_by_its_bytes_and_forgets_it_in_time() -> None:
    quarantine = Quarantine(never_ordered)
    quarantine.add(sent(1, bytes(256)), NOW)
    assert quarantine.holds(sent(2, bytes(256)), NOW + 1)
    assert not quarantine.holds(sent(3, b"\1" * 256), NOW + 1)
    assert not quarantine.holds(sent(4, bytes(256)), NOW + 3_600)


LARGE = bytes(DIGESTED_AT_ONCE_BYTES + 4)


@pytest.mark.parametrize("is_guilty", [True, False])
def test_a_large_input_is_remembered_once_its_digest_has_come(is_guilty: bool) -> None:
    ordered: list[Ticket] = []
    quarantine = Quarantine(ordered.append)
    first, second = sent(1, LARGE), sent(2, LARGE)
    quarantine.suspect(first, NOW)
    if is_guilty:
        quarantine.add(first, NOW)
    assert ordered == [first]
    assert not quarantine.wants_digest(second.query)

    quarantine.digested(first, digest(first.query), NOW + 1)

    assert quarantine.wants_digest(second.query)
    second.digest = digest(second.query)
    assert (quarantine.holds(second, NOW + 2), quarantine.suspects(second, NOW + 2)) == (is_guilty, not is_guilty)
    assert not quarantine.wants_digest(sent(3, LARGE[1:] + b"\1").query)


def test_a_large_input_that_is_cleared_before_its_digest_comes_is_not_suspected() -> None:
    quarantine = Quarantine(lambda _: None)
    first = sent(1, LARGE)
    quarantine.suspect(first, NOW)
    quarantine.clear(first)
    quarantine.digested(first, digest(first.query), NOW + 1)
    assert not quarantine.suspects(first, NOW + 2)


def test_a_large_input_that_could_not_be_digested_is_asked_for_again_when_it_is_suspected_again() -> None:
    ordered: list[Ticket] = []
    quarantine = Quarantine(ordered.append)
    first = sent(1, LARGE)
    quarantine.suspect(first, NOW)
    quarantine.not_digested(first)
    quarantine.add(first, NOW + 1)
    assert ordered == [first, first]


def sent(number: int, data: bytes) -> Ticket:
    shape = (1, len(data) // 4)
    return Ticket(number, a_query(inputs=(Tensor("image", Datatype.FP32, shape, data),)), None)


def never_ordered(ticket: Ticket) -> None:
    raise AssertionError(f"{ticket.number} is small")


def test_retries_of_running_work_are_a_tenth_of_the_queries_beyond_a_small_burst() -> None:
    budget = RetryBudget()
    assert sum(budget.spend() for _ in range(100)) == 10
    for _ in range(100):
        budget.arrived()
    assert sum(budget.spend() for _ in range(100)) in (9, 10)


def test_redialling_backs_off_within_bounds_and_with_jitter() -> None:
    pauses = [redial_pause_s(failures, 0.999) for failures in range(40)]
    assert pauses == sorted(pauses)
    assert pauses[-1] <= LONGEST_PAUSE_S
    assert redial_pause_s(5, 0.0) < redial_pause_s(5, 0.9)


def test_a_pace_is_of_items_however_they_fell_into_batches() -> None:
    pace, now = Pace(), NOW
    pace.add(1, now, is_full=True)
    for _ in range(50):
        for items, seconds in ((1, 0.005), (32, 0.020)):
            now += seconds
            pace.add(items, now, is_full=True)
    assert pace.end_of(330, now) - now == pytest.approx(330 * 0.025 / 33 * (1 + PACE_MARGIN), rel=0.1)


def test_who_comes_while_something_runs_may_have_lain_unread() -> None:
    variant = a_variant("v", p95_ms=10, per_item_ms=1)
    ledger = Ledger(hop_s=0.001)
    worker = a_worker("w1", instances=[an_instance("i1", variant="v", state=InstanceState.READY)])
    ledger.sync(a_view(variants=[variant], workers=[worker]), NOW)
    (lane,) = ledger.lanes_of(variant.name)
    alone = ledger.predict(lane, urgency(1), 1, NOW)
    ledger.unread_s = 0.003
    assert ledger.predict(lane, urgency(1), 1, NOW) == alone, "nothing runs that the loop could have waited for"
    ledger.others_hold(lane, 1, NOW)
    busy = ledger.predict(lane, urgency(1), 1, NOW)
    ledger.unread_s = 0.0
    assert busy - ledger.predict(lane, urgency(1), 1, NOW) == pytest.approx(0.003)


@pytest.mark.parametrize(("left", "is_learnt"), [(1, True), (0, False)])
def test_small_batches_count_for_a_pace_when_they_leave_queries_behind(left: int, is_learnt: bool) -> None:
    variant = a_variant("v", per_item_ms=0.1)
    ledger = Ledger(hop_s=0.0)
    worker = a_worker("w1", instances=[an_instance("i1", variant="v", state=InstanceState.READY)])
    ledger.sync(a_view(variants=[variant], workers=[worker]), NOW)
    (lane,) = ledger.lanes_of(variant.name)
    for number in range(3):
        flight = ledger.sent(lane, number, 2, NOW + number)
        flight.is_next, flight.has_more = True, left > 0
        ledger.done(lane, number)
        ledger.observed_batch(lane, flight, 2, 0.0, 0.002, NOW + number)
    assert (lane.pace.end_of(10, NOW + 2) > NOW + 2) is is_learnt


def test_a_pace_is_learnt_from_full_batches_that_only_waited_for_the_one_before() -> None:
    pace, margin = Pace(), 1 + PACE_MARGIN
    assert pace.end_of(100, NOW) == NOW, "nothing is known"
    pace.add(20, NOW, is_full=True)
    assert pace.end_of(100, NOW) == NOW, "one end is no time between two"
    pace.add(20, NOW + 0.1, is_full=True)
    assert pace.end_of(100, NOW + 0.1) == pytest.approx(NOW + 0.1 + 100 * 0.005 * margin)
    pace.add(1, NOW + 1.1, is_full=False)
    assert pace.end_of(100, NOW + 1.1) == pytest.approx(NOW + 1.1 + 100 * 0.005 * margin), "an idle second is no pace"
    for n in range(100):
        pace.add(20, NOW + 1.1 + 0.2 * (n + 1), is_full=True)
    end = NOW + 1.1 + 20.0
    assert pace.end_of(100, end) == pytest.approx(end + 100 * 0.01 * margin, rel=0.01), "it follows what is seen"
    assert pace.end_of(0, end + 1.0) == end + 1.0
    assert pace.end_of(100, end + FRESH_S + 0.1) == end + FRESH_S + 0.1, "and forgets it when there is no queue"


def test_nobody_is_promised_to_get_through_a_queue_faster_than_those_before() -> None:
    ledger = a_ledger()
    lane = ledger.lanes["i1"]  # type: ignore[index]
    now = NOW
    for number in range(20):  # each takes 10 ms by the profile, and all in all 50 ms
        flight = ledger.sent(lane, number, 1, now)
        flight.is_next = True
        now += 0.05
        ledger.done(lane, number)
        ledger.observed_batch(lane, flight, 1, 0.0, 0.010, now)
    idle = ledger.predict(lane, urgency(1), 1, now)
    ledger.reserve(lane, urgency(1), 10)
    assert ledger.predict(lane, urgency(1), 1, now) - idle == pytest.approx(10 * 0.05 * (1 + PACE_MARGIN), rel=0.1)
    ledger.release(lane, urgency(1), 10)
    assert ledger.predict(lane, urgency(1), 1, now) == idle, "without a queue, the pace of one says nothing"
