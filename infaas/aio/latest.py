"""A one-slot publisher: whoever reads gets the newest value, and a slow reader never makes a writer wait."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """`put` replaces what was not taken yet; `get` takes the newest, waiting for it. Each value is taken once."""

    def __init__(self) -> None:
        self._slot: list[T] = []
        self._is_full = asyncio.Event()

    def put(self, value: T) -> None:
        self._slot[:] = [value]
        self._is_full.set()

    async def get(self) -> T:
        """Cancelling leaves the value for the next reader."""
        while not self._slot:
            await self._is_full.wait()
        self._is_full.clear()
        return self._slot.pop()

    @property
    def has_value(self) -> bool:
        return bool(self._slot)
