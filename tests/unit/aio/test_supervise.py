"""Tasks with names and an owner."""

from __future__ import annotations

import asyncio

import pytest

from infaas.aio import supervise
from infaas.aio.supervise import Supervisor, TaskCrashedError


async def forever() -> None:
    await asyncio.Event().wait()


async def test_a_crash_is_logged_and_ends_the_wait(capsys: pytest.CaptureFixture[str]) -> None:
    async def crash() -> None:
        raise RuntimeError("out of luck")

    supervisor = Supervisor("controller")
    supervisor.spawn("view", forever())
    supervisor.spawn("journal", crash())
    with pytest.raises(TaskCrashedError, match=r"'journal'.*out of luck") as error:
        await asyncio.wait_for(supervisor.wait(), 10)
    assert isinstance(error.value.__cause__, RuntimeError)
    assert supervisor.names == ("view",)
    assert await supervisor.stop() == []
    assert "out of luck" in capsys.readouterr().err


async def test_an_eternal_task_that_returns_has_crashed_and_a_finite_one_has_not() -> None:
    async def end() -> None: ...

    supervisor = Supervisor("x")
    supervisor.spawn("finite", end(), is_eternal=False)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert supervisor.names == ()
    supervisor.spawn("eternal", end())
    with pytest.raises(TaskCrashedError, match="'eternal'"):
        await asyncio.wait_for(supervisor.wait(), 10)


async def test_a_task_cancelled_by_somebody_else_has_crashed() -> None:
    supervisor = Supervisor("x")
    supervisor.spawn("loop", forever()).cancel()
    with pytest.raises(TaskCrashedError, match="cancelled"):
        await asyncio.wait_for(supervisor.wait(), 10)


async def test_stopping_drains_and_cancels_stage_by_stage() -> None:
    order: list[str] = []
    supervisor = Supervisor("x")

    async def loop(name: str) -> None:
        try:
            await forever()
        finally:
            order.append(f"{name} ends")

    async def drain(name: str) -> None:
        await asyncio.sleep(0)
        order.append(f"{name} drained")

    supervisor.spawn("late", loop("late"), stage=1)
    supervisor.spawn("early", loop("early"), stage=0)
    supervisor.on_stop("late", lambda: drain("late"), stage=1)
    supervisor.on_stop("early", lambda: drain("early"), stage=0)
    waiter = asyncio.create_task(supervisor.wait(), name="waiter")
    await asyncio.sleep(0)
    assert await supervisor.stop() == []
    assert order == ["early drained", "early ends", "late drained", "late ends"]
    await asyncio.wait_for(waiter, 10)
    assert await supervisor.stop() == []


async def test_stopping_is_bounded_and_names_what_did_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "_CANCEL_GRACE_S", 0.05)
    supervisor = Supervisor("x")
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async def never() -> None:
        await forever()

    task = supervisor.spawn("stubborn", stubborn())
    supervisor.on_stop("endless drain", never)
    stopping = asyncio.create_task(supervisor.stop(0.05), name="stop")
    assert await asyncio.wait_for(stopping, 20) == ["endless drain", "stubborn"]
    release.set()
    await task


async def test_a_drain_that_fails_is_logged_and_the_rest_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    async def fail() -> None:
        raise RuntimeError("cannot close")

    supervisor = Supervisor("x")
    task = supervisor.spawn("loop", forever())
    supervisor.on_stop("listener", fail)
    assert await supervisor.stop() == []
    assert task.cancelled()
    assert "cannot close" in capsys.readouterr().err


async def test_nothing_starts_while_stopping() -> None:
    supervisor = Supervisor("x")
    await supervisor.stop()
    with pytest.raises(RuntimeError, match="stopping"):
        supervisor.spawn("late", forever())
