"""Waking up on time: the event loop's own timers count in milliseconds, which is as long as a small query takes.

A timer of the kernel (timerfd, Linux) wakes the loop as if a file had become readable, some tens of microseconds after
the moment. Where there is none, the loop's timer is used, and late sends show in the figures like any other.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from types import TracebackType
from typing import Self

_CLOCK_MONOTONIC = 1
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_ABSOLUTE = 1
_NS = 1_000_000_000


class _Times(ctypes.Structure):
    """`struct itimerspec`: the period, and the first moment."""

    _fields_ = (
        ("period_s", ctypes.c_long),
        ("period_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    )


class Pacer:
    """For one waiter at a time, on the running loop. Moments are `time.monotonic()`'s."""

    def __init__(self) -> None:
        self._libc: ctypes.CDLL | None = None
        self._timer = -1
        self._waiter: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "timerfd_create"):
            timer = libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
            if timer >= 0:
                self._libc, self._timer = libc, timer
                asyncio.get_running_loop().add_reader(timer, self._ring)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer >= 0:
            asyncio.get_running_loop().remove_reader(self._timer)
            os.close(self._timer)
            self._timer = -1

    async def until(self, moment: float) -> None:
        """When the moment is past, the loop only gets its turn."""
        left_s = moment - time.monotonic()
        if left_s <= 0 or self._libc is None:
            await asyncio.sleep(max(0.0, left_s))
            return
        seconds, rest_ns = divmod(max(1, int(moment * _NS)), _NS)
        times = _Times(0, 0, seconds, rest_ns)
        if self._libc.timerfd_settime(self._timer, _ABSOLUTE, ctypes.byref(times), None) != 0:
            raise OSError(ctypes.get_errno(), "the kernel's timer could not be set")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _ring(self) -> None:
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            return  # it was set anew meanwhile
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
