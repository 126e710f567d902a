"""How many large payloads went each way over connections, seen from one end.

The numbers are a row of whoever keeps them. In a book (`infaas.observe.book`) they outlive the connection, and, where
several processes are one controller, the process that counted them too.
"""

from __future__ import annotations

from dataclasses import dataclass

from infaas.observe.book import Cells

_SENT, _SENT_BYTES, _SENT_WITHOUT_ROOM, _RECEIVED, _RECEIVED_BYTES, _RECEIVED_WITHOUT_ROOM = range(6)
TRAFFIC_WIDTH = 6
"""Of the row."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payloads that were large."""

    sent: int = 0
    """Through shared memory."""
    sent_bytes: int = 0
    sent_without_room: int = 0
    """Through the socket, because this end's pool was full."""
    received: int = 0
    received_bytes: int = 0
    received_without_room: int = 0


def traffic_in(cells: Cells) -> Traffic:
    """What a row of `TRAFFIC_WIDTH` says."""
    return Traffic(*(int(cells[place]) for place in range(TRAFFIC_WIDTH)))


class TrafficCounts:
    """Counts into a row. Written by one event loop."""

    __slots__ = ("_cells",)

    def __init__(self, cells: Cells | None = None) -> None:
        """Without a row of somebody's, it has its own."""
        self._cells: Cells = [0.0] * TRAFFIC_WIDTH if cells is None else cells

    def so_far(self) -> Traffic:
        return traffic_in(self._cells)

    def sent(self, size_bytes: int) -> None:
        self._cells[_SENT] += 1
        self._cells[_SENT_BYTES] += size_bytes

    def sent_without_room(self) -> None:
        self._cells[_SENT_WITHOUT_ROOM] += 1

    def received(self, size_bytes: int) -> None:
        self._cells[_RECEIVED] += 1
        self._cells[_RECEIVED_BYTES] += size_bytes

    def received_without_room(self, count: int) -> None:
        self._cells[_RECEIVED_WITHOUT_ROOM] += count
