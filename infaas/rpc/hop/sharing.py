"""How the two ends of a connection come to share memory, or find out why they cannot.

The controller offers its pool with its first message; the worker opens it, says so, and offers its own; the controller
says whether it can read that. An end uses its pool once the other one reads it. Whatever goes wrong here costs nothing
but speed: payloads go through the socket, and the reason is kept for whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable

from infaas.observe.log import get_logger
from infaas.rpc.hop.endpoint import Endpoint
from infaas.rpc.hop.shared import Offer, Pool, SharedMemoryError, Window
from infaas.rpc.hop.traffic import TrafficCounts
from infaas.rpc.v1 import worker_pb2 as pb

_log = get_logger(__name__)


class Sharing:
    """One end's part, from the first word of it until the connection is over. On the endpoint's loop."""

    def __init__(
        self, endpoint: Endpoint, pool_bytes: int, peer: str, counts: Callable[[], TrafficCounts] | None = None
    ) -> None:
        """`pool_bytes` 0: nothing is offered, and nothing that is offered is read. `peer` is for people. `counts`:
        where to count, asked for once memory is offered; without it, the endpoint counts for itself."""
        self._endpoint = endpoint
        self._pool_bytes = pool_bytes
        self._peer = peer
        self._counts = counts
        self._pool: Pool | None = None
        self.reason = "" if pool_bytes else "turned off by this end's settings"
        """Why this end's large payloads go through the socket; empty: they do not, or it is not settled yet."""

    def offer(self) -> pb.Pool | None:
        """What this end lends, for the peer to open; None: nothing."""
        if not self._pool_bytes:
            return None
        try:
            self._endpoint.peer()
            self._pool = Pool(self._pool_bytes)
        except SharedMemoryError as error:
            self.reason = str(error)
            return None
        if self._counts is not None:
            self._endpoint.counts = self._counts()
        offer = self._pool.offer()
        return pb.Pool(descriptor=offer.descriptor, size_bytes=offer.size_bytes, key=offer.key)

    def answer(self, said: pb.Pool) -> pb.SharedMemory:
        """Open what the peer offers; what to tell it."""
        if not self._pool_bytes:
            return pb.SharedMemory(reason="turned off by the other end's settings")
        try:
            window = Window(Offer(said.descriptor, said.size_bytes, said.key), self._endpoint.peer())
        except SharedMemoryError as error:
            _log.info("a peer's memory is not shared", peer=self._peer, reason=str(error))
            return pb.SharedMemory(reason=str(error))
        self._endpoint.look(window)
        return pb.SharedMemory(is_read=True)

    def answered(self, said: pb.SharedMemory) -> None:
        """What the peer said to the offer. An answer to nothing is passed over."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        pool.hide()
        if said.is_read:
            self._endpoint.lend(pool)
            return
        self.reason = said.reason
        _log.info("large tensors go through the socket", peer=self._peer, reason=said.reason)

    @property
    def is_lending(self) -> bool:
        """Whether this end's large payloads go through its pool."""
        return self._endpoint.pool is not None

    def close(self) -> None:
        """The connection is over."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.hide()
