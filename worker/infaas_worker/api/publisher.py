"""Sends the worker's report to every attached controller: at once, on every change of state, and each heartbeat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from infaas.rpc.v1 import worker_pb2


class Subscriber(Protocol):
    def report(self, message: worker_pb2.WorkerMessage) -> None: ...

    async def flushed(self) -> None: ...

    @property
    def has_flushed(self) -> bool:
        """Whether `flushed` would return at once."""


class Publisher:
    """Lives on the event loop. Changes within one turn of the loop make one report."""

    def __init__(self) -> None:
        self._build: Callable[[], worker_pb2.WorkerMessage] | None = None
        self._subscribers: set[Subscriber] = set()
        self._is_due = False

    def attach(self, build: Callable[[], worker_pb2.WorkerMessage]) -> None:
        """Where reports come from; nothing is published before."""
        self._build = build

    def add(self, subscriber: Subscriber) -> None:
        self._subscribers.add(subscriber)
        if self._build is not None:
            subscriber.report(self._build())

    def remove(self, subscriber: Subscriber) -> None:
        self._subscribers.discard(subscriber)

    def publish_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self.publish)

    def publish(self) -> None:
        self._is_due = False
        if self._build is None or not self._subscribers:
            return
        message = self._build()
        for subscriber in self._subscribers:
            subscriber.report(message)

    @property
    def is_there(self) -> bool:
        """Whether anybody is."""
        return bool(self._subscribers)

    @property
    def has_several(self) -> bool:
        return len(self._subscribers) > 1

    @property
    def has_heard(self) -> bool:
        """Whether anybody has everything that was published."""
        return any(subscriber.has_flushed for subscriber in self._subscribers)

    async def flushed(self) -> None:
        """Until every subscriber has what it was sent."""
        for subscriber in list(self._subscribers):
            await subscriber.flushed()
