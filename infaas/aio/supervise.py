"""The owner of a program's long-lived tasks: each has a name, none dies unseen, and all end within a bound.

A program spawns its loops here, awaits `wait()` beside its stop signal, and calls `stop()` once. Stages end in
ascending order: a stage's drains run first (close listeners, finish work), then its tasks are cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from infaas.observe.log import get_logger

T = TypeVar("T")
_log = get_logger(__name__)
_CANCEL_GRACE_S = 1.0
"""What cancelled tasks get to end in even when draining used up the whole bound."""


class TaskCrashedError(Exception):
    """A supervised task raised, or an eternal one returned. The cause is chained."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"task {name!r} ended: {reason}")
        self.name = name


@dataclass(frozen=True, slots=True)
class _Drain:
    name: str
    fn: Callable[[], Awaitable[Any]]
    stage: int


class Supervisor:
    """Used from one event loop. After `stop` nothing can be spawned."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stage_of: dict[asyncio.Task[Any], int] = {}
        self._drains: list[_Drain] = []
        self._crash: TaskCrashedError | None = None
        self._crashed = asyncio.Event()
        self._is_stopping = False

    def spawn(
        self, name: str, coro: Coroutine[Any, Any, T], *, stage: int = 0, is_eternal: bool = True
    ) -> asyncio.Task[T]:
        """Start a task. A crash makes `wait` raise; so does the return of one that should be eternal."""
        if self._is_stopping:
            coro.close()
            raise RuntimeError(f"supervisor {self._name!r} is stopping and starts no task {name!r}")
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self._stage_of[task] = stage
        task.add_done_callback(lambda done: self._on_done(done, is_eternal))
        return task

    def on_stop(self, name: str, fn: Callable[[], Awaitable[Any]], *, stage: int = 0) -> None:
        """Have `fn` run in its stage of `stop`, before that stage's tasks are cancelled."""
        self._drains.append(_Drain(name, fn, stage))

    @property
    def names(self) -> Sequence[str]:
        """Of the tasks that run."""
        return tuple(task.get_name() for task in self._stage_of)

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping

    async def wait(self) -> None:
        """Wait for the first crash and raise it as TaskCrashedError; returns only when `stop` was called."""
        await self._crashed.wait()
        if self._crash is not None:
            raise self._crash

    async def stop(self, timeout_s: float = 10.0) -> Sequence[str]:
        """Drain and cancel stage by stage; returns the names of what did not end in time (they are logged).

        Takes at most `timeout_s` and, for what has to be cancelled then, one second per stage. Idempotent.
        """
        self._is_stopping = True
        deadline = asyncio.get_running_loop().time() + timeout_s
        stuck: list[str] = []
        for stage in sorted({*self._stage_of.values(), *(drain.stage for drain in self._drains)}):
            stuck += await self._drain_stage(stage, deadline)
            stuck += await self._cancel_stage(stage, deadline)
        self._drains.clear()
        self._crashed.set()
        if stuck:
            _log.error("stopped with a rest", supervisor=self._name, stuck=stuck, timeout_s=timeout_s)
        return stuck

    async def _drain_stage(self, stage: int, deadline: float) -> list[str]:
        tasks = {
            asyncio.ensure_future(_awaited(drain.fn)): drain.name for drain in self._drains if drain.stage == stage
        }
        stuck = await _end(list(tasks), deadline)
        for task, name in tasks.items():
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                _log.error("drain failed", supervisor=self._name, drain=name, exc_info=error)
        return [tasks[task] for task in stuck]

    async def _cancel_stage(self, stage: int, deadline: float) -> list[str]:
        tasks = [task for task, of_stage in self._stage_of.items() if of_stage == stage]
        for task in tasks:
            task.cancel()
        return [task.get_name() for task in await _end(tasks, deadline, was_cancelled=True)]

    def _on_done(self, task: asyncio.Task[Any], is_eternal: bool) -> None:
        self._stage_of.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error is None and (self._is_stopping or not is_eternal):
            return
        if error is not None:
            reason = f"{type(error).__name__}: {error}"
        else:
            reason = "it was cancelled by somebody else" if task.cancelled() else "an eternal task returned"
        _log.error("task crashed", supervisor=self._name, task=task.get_name(), reason=reason, exc_info=error)
        if self._crash is None:
            self._crash = TaskCrashedError(task.get_name(), reason)
            self._crash.__cause__ = error
        self._crashed.set()


async def _awaited(fn: Callable[[], Awaitable[Any]]) -> None:
    await fn()


async def _end(
    tasks: Sequence[asyncio.Task[Any]], deadline: float, *, was_cancelled: bool = False
) -> Sequence[asyncio.Task[Any]]:
    """Wait for tasks until the deadline, then cancel the rest and give that its grace; returns what still runs."""
    if not tasks:
        return ()
    left_s = max(0.0, deadline - asyncio.get_running_loop().time())
    _, pending = await asyncio.wait(tasks, timeout=max(left_s, _CANCEL_GRACE_S) if was_cancelled else left_s)
    if not pending or was_cancelled:
        return tuple(pending)
    for task in pending:
        task.cancel()
    await asyncio.wait(pending, timeout=_CANCEL_GRACE_S)
    return tuple(pending)
