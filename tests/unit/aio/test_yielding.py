"""Loops that take their turn beside model runs."""

from __future__ import annotations

import os
import threading

import pytest

from infaas.aio.yielding import yield_to_runs


def class_after(call: bool) -> int:
    """Of a thread of its own: no other test is to run in another class."""
    found: list[int] = []

    def look() -> None:
        if call:
            yield_to_runs()
        found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_that_yields_to_runs_is_of_the_batch_class_and_no_other_is() -> None:
    assert class_after(call=True) == os.SCHED_BATCH
    assert class_after(call=False) == os.sched_getscheduler(0) == os.SCHED_OTHER


def test_where_the_class_may_not_be_had_the_program_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, policy: int, param: os.sched_param) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert class_after(call=True) == os.SCHED_OTHER
