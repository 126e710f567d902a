from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infaas.up.restart import (
    Life,
    ProgramState,
    RestartRule,
    backoff_s,
    describe_exit,
    exited,
    is_due,
    started,
    stopped,
)

RULE = RestartRule(first_delay_s=1, factor=2, max_delay_s=8, jitter=0.5, stable_after_s=30, crash_loop_after=3)


def test_a_first_quick_end_is_tried_again_after_the_first_delay() -> None:
    life = exited(started(Life(), now=10), status=1, now=11, rule=RULE, draw=0)

    assert life == Life(ProgramState.BACKING_OFF, started_at=10, quick_exits=1, next_try_at=12, last_exit="exit code 1")
    assert not is_due(life, 11.9)
    assert is_due(life, 12)


def test_quick_ends_in_a_row_double_the_wait_and_become_a_crash_loop() -> None:
    life, now, waits, states = Life(), 0.0, [], []
    for _ in range(6):
        life = exited(started(life, now), status=-9, now=now, rule=RULE, draw=0)
        waits.append(life.next_try_at - now)
        states.append(life.state)
        now = life.next_try_at

    assert waits == [1, 2, 4, 8, 8, 8]
    assert states == [ProgramState.BACKING_OFF] * 2 + [ProgramState.CRASH_LOOP] * 4
    assert life.restarts == 5
    assert life.last_exit == "killed by SIGKILL"


def test_a_long_run_clears_the_record_of_quick_ends() -> None:
    looping = Life(ProgramState.RUNNING, started_at=0, quick_exits=7, last_exit="exit code 1")

    life = exited(looping, status=0, now=30, rule=RULE, draw=0)

    assert (life.state, life.quick_exits, life.next_try_at) == (ProgramState.BACKING_OFF, 1, 31)


def test_wrong_settings_are_a_crash_loop_at_once_with_the_longest_wait() -> None:
    life = exited(started(Life(), 0), status=2, now=0.2, rule=RULE, draw=0)

    assert (life.state, life.next_try_at) == (ProgramState.CRASH_LOOP, 8.2)
    assert life.last_exit == "exit code 2 (wrong settings)"


def test_a_stopped_program_is_never_due() -> None:
    life = stopped(exited(started(Life(), 0), status=1, now=1, rule=RULE, draw=0), None)

    assert life.state is ProgramState.STOPPED
    assert not is_due(life, 1e9)
    assert life.last_exit == "exit code 1"


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_wait_lies_between_the_first_delay_and_the_limit_with_its_jitter(quick: int, draw: float) -> None:
    assert RULE.first_delay_s <= backoff_s(quick, RULE) <= RULE.max_delay_s
    life = exited(Life(quick_exits=quick), status=1, now=0, rule=RULE, draw=draw)
    assert RULE.first_delay_s <= life.next_try_at <= RULE.max_delay_s * (1 + RULE.jitter)


def test_exits_are_described_in_words() -> None:
    assert describe_exit(0) == "exit code 0"
    assert describe_exit(-15) == "killed by SIGTERM"
    assert describe_exit(-250) == "killed by signal 250"
