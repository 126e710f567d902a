"""When a program that ended is started again: the supervisor's one rule, as functions over frozen values.

A program that ends soon after it started waits longer each time, up to a limit; after a few such ends in a row it is
called a crash loop, so that people see it, and is still retried. One that ran for a while starts afresh.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from enum import StrEnum

SETTINGS_EXIT = 2
"""A program's exit status when its settings are wrong: trying again soon cannot help."""

HUNG_EXIT = 3
"""A worker's, when an instance in its process hung and it ended so that it is replaced."""


class ProgramState(StrEnum):
    RUNNING = "running"
    BACKING_OFF = "backing-off"
    CRASH_LOOP = "crash-loop"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class RestartRule:
    first_delay_s: float = 0.5
    factor: float = 2.0
    max_delay_s: float = 30.0
    jitter: float = 0.2
    """Share of the delay that the draw may add, so that programs that fell together do not rise together."""
    stable_after_s: float = 30.0
    """A run this long clears the record of earlier quick ends."""
    crash_loop_after: int = 4
    """Quick ends in a row that make a crash loop."""
    at_once: int = 0
    """So many quick ends in a row are followed by no pause."""


@dataclass(frozen=True, slots=True)
class Life:
    """What the supervisor remembers of one program. Times are monotonic seconds."""

    state: ProgramState = ProgramState.STOPPED
    started_at: float = 0.0
    restarts: int = 0
    quick_exits: int = 0
    next_try_at: float | None = None
    last_exit: str | None = None


def started(life: Life, now: float) -> Life:
    """The program was started, for the first time or again."""
    again = life.last_exit is not None
    return replace(
        life,
        state=ProgramState.RUNNING,
        started_at=now,
        next_try_at=None,
        restarts=life.restarts + (1 if again else 0),
    )


def exited(life: Life, status: int, now: float, rule: RestartRule, draw: float) -> Life:
    """The program ended by itself with `status` (negative: the signal that killed it); `draw` lies in [0, 1)."""
    ran_s = now - life.started_at
    quick = 1 if ran_s >= rule.stable_after_s else life.quick_exits + 1
    is_hopeless = status == SETTINGS_EXIT
    delay = rule.max_delay_s if is_hopeless else backoff_s(quick, rule)
    is_looping = is_hopeless or quick >= rule.crash_loop_after
    return replace(
        life,
        state=ProgramState.CRASH_LOOP if is_looping else ProgramState.BACKING_OFF,
        quick_exits=quick,
        next_try_at=now + delay * (1.0 + rule.jitter * draw),
        last_exit=describe_exit(status),
    )


def stopped(life: Life, status: int | None) -> Life:
    """The program ended because we asked it to (`status` None: it was not running)."""
    last = life.last_exit if status is None else describe_exit(status)
    return replace(life, state=ProgramState.STOPPED, next_try_at=None, last_exit=last)


def backoff_s(quick_exits: int, rule: RestartRule) -> float:
    """0.5, 1, 2, 4 ... seconds, never more than the limit; none for those that the rule forgives."""
    if 0 < quick_exits <= rule.at_once:
        return 0.0
    exponent = min(max(quick_exits - rule.at_once - 1, 0), 64)
    return float(min(rule.first_delay_s * rule.factor**exponent, rule.max_delay_s))


def is_due(life: Life, now: float) -> bool:
    return life.next_try_at is not None and now >= life.next_try_at


def describe_exit(status: int) -> str:
    """What `Popen.returncode` means, in words."""
    if status == SETTINGS_EXIT:
        return "exit code 2 (wrong settings)"
    if status == HUNG_EXIT:
        return "exit code 3 (an instance hung)"
    if status >= 0:
        return f"exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"killed by {name}"
