"""Which staged work starts next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from infaas_worker.decide.schedule import PATIENCE_S, Running, Waiting, choose

from infaas.domain.ids import InstanceId


def waiting(key: int, deadline: float, *, threads: int = 1, arrived_at: float = 0.0, expected_s: float | None = 0.01):
    return Waiting(key, InstanceId(f"i{key}"), threads, arrived_at, deadline, expected_s)


def room(*works: Waiting) -> dict[InstanceId, int]:
    return {work.instance: 1 for work in works}


def test_the_earliest_deadline_goes_first():
    works = [waiting(1, 0.5), waiting(2, 0.1), waiting(3, 0.3)]
    assert choose(works, [], room(*works), 2, 0.0) == (2, 3)


def test_an_instance_runs_no_more_at_once_than_its_executor_takes():
    one = InstanceId("i1")
    works = [Waiting(1, one, 1, 0, 0.1), Waiting(2, one, 1, 0, 0.2)]
    assert choose(works, [], {one: 1}, 4, 0.0) == (1,)
    assert choose(works, [], {one: 2}, 4, 0.0) == (1, 2)
    assert choose(works, [], {}, 4, 0.0) == ()


def test_work_with_a_late_deadline_ages_past_newer_urgent_work():
    old = waiting(1, 30.0, arrived_at=0.0)
    assert choose([old, waiting(2, 0.6, arrived_at=0.5)], [], {old.instance: 1, InstanceId("i2"): 1}, 1, 0.5) == (2,)
    fresh = waiting(3, PATIENCE_S + 0.2, arrived_at=PATIENCE_S + 0.1)
    assert choose([fresh, old], [], room(old, fresh), 1, PATIENCE_S + 0.1) == (1,)


def test_wide_work_keeps_the_next_cores_for_itself():
    wide, narrow = waiting(1, 0.1, threads=2), waiting(2, 0.2, expected_s=5.0)
    assert choose([wide, narrow], [Running(1, ends_at=1.0)], room(wide, narrow), 2, 0.0) == ()


def test_narrow_work_goes_in_front_of_wide_work_when_it_is_over_in_time():
    wide, quick = waiting(1, 0.1, threads=2), waiting(2, 0.2, expected_s=0.5)
    unknown = waiting(3, 0.15, expected_s=None)
    assert choose([wide, quick], [Running(1, ends_at=1.0)], room(wide, quick), 2, 0.0) == (2,)
    assert choose([wide, unknown], [Running(1, ends_at=1.0)], room(wide, unknown), 2, 0.0) == ()


def test_narrow_work_goes_in_front_on_cores_that_the_wide_work_will_not_need():
    wide, long = waiting(1, 0.1, threads=2), waiting(2, 0.2, expected_s=9.0)
    another = waiting(3, 0.3, expected_s=9.0)
    running = [Running(2, ends_at=1.0)]
    assert choose([wide, long, another], running, room(wide, long, another), 3, 0.0) == (2,)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.floats(0, 3), st.none() | st.floats(0, 1)), max_size=8),
    st.lists(st.tuples(st.integers(1, 2), st.floats(0, 2)), max_size=3),
    st.integers(1, 6),
)
def test_threads_never_exceed_the_cores_and_no_core_that_something_fits_stays_empty(works, busy, cores):
    waits = [waiting(i, d, threads=t, expected_s=e) for i, (t, d, e) in enumerate(works)]
    running = [Running(t, end) for t, end in busy if t <= cores]
    while sum(run.threads for run in running) > cores:
        running.pop()
    starts = choose(waits, running, room(*waits), cores, 0.0)
    used = sum(run.threads for run in running) + sum(w.threads for w in waits if w.key in starts)
    assert used <= cores
    assert len(set(starts)) == len(starts)
    first = min((w for w in waits if w.threads <= cores), key=lambda w: w.urgency, default=None)
    if not running and first is not None and all(w.threads <= cores for w in waits):
        assert starts[0] == first.key
