"""Listening with TLS: who connects shows a certificate, or is told why it is not let in.

The loop's own servers say nothing of a handshake that failed, so connections are accepted here. The first byte tells
TLS from the plain protocol: a part whose `tls` settings are missing is answered in plain words instead of an alert that
it cannot read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence

from infaas.observe.log import get_logger
from infaas.observe.seldom import Seldom
from infaas.rpc.tls import GOODBYE_WITHIN_S, HANDSHAKE_WITHIN_S, Tls, in_words

Make = Callable[[], asyncio.BaseProtocol]
_HANDSHAKE = b"\x16"
"""What a connection over TLS opens with."""
_WAITING = 128
_PAUSE_S = 0.1
"""After the system could not hand over a connection, for want of descriptors."""
_log = get_logger(__name__)


class TlsServer:
    """Serves from its making on, until `close`. Belongs to the running loop."""

    def __init__(self, sockets: Sequence[socket.socket], make: Make, make_plain: Make, tls: Tls) -> None:
        """`make_plain`: for whoever comes without TLS."""
        self._make = make
        self._make_plain = make_plain
        self._tls = tls
        self._seldom = Seldom()
        self._loop = asyncio.get_running_loop()
        self.sockets = tuple(sockets)
        self._accepting = [
            self._loop.create_task(self._accept(listening), name="hop-accept") for listening in self.sockets
        ]
        self._entering: set[asyncio.Task[None]] = set()
        self._ending: list[asyncio.Task[None]] = []

    def is_serving(self) -> bool:
        return bool(self._accepting)

    def close(self) -> None:
        """Who is not in yet stays outside."""
        for task in (*self._accepting, *self._entering):
            task.cancel()
        self._ending = [*self._accepting, *self._entering]
        self._accepting = []

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._ending, return_exceptions=True)
        for listening in self.sockets:  # a task that never began has not closed its own
            listening.close()

    async def _accept(self, listening: socket.socket) -> None:
        try:
            while True:
                try:
                    connection, where = await self._loop.sock_accept(listening)
                except OSError as error:
                    self._say("a connection could not be taken", "", str(error))
                    await asyncio.sleep(_PAUSE_S)
                    continue
                task = self._loop.create_task(self._enter(connection, str(where[0])), name="hop-handshake")
                self._entering.add(task)
                task.add_done_callback(self._entering.discard)
        except Exception as error:
            _log.error("no connections are taken any more", exc_info=error)
            raise
        finally:
            listening.close()

    async def _enter(self, connection: socket.socket, host: str) -> None:
        """Until it is a protocol's."""
        made: list[asyncio.BaseProtocol] = []

        def make() -> asyncio.BaseProtocol:
            made.append(self._make())
            return made[0]

        try:
            async with asyncio.timeout(HANDSHAKE_WITHIN_S):
                if await self._opens_with(connection) == _HANDSHAKE:
                    await self._loop.connect_accepted_socket(
                        make,
                        connection,
                        ssl=self._tls.server(),
                        ssl_handshake_timeout=HANDSHAKE_WITHIN_S,
                        ssl_shutdown_timeout=GOODBYE_WITHIN_S,
                    )
                else:
                    await self._loop.connect_accepted_socket(self._make_plain, connection)
        except BaseException as error:
            connection.close()
            for protocol in made:  # it was made before the handshake, and hears no more of it
                protocol.connection_lost(None)
            if not isinstance(error, OSError | TimeoutError):
                raise
            self._say("no TLS connection came of it", host, in_words(error))

    def _say(self, event: str, peer: str, reason: str) -> None:
        """Whoever is refused comes again and again."""
        unsaid = self._seldom.unsaid((event, peer, reason))
        if unsaid is not None:
            _log.warning(event, peer=peer, reason=reason, unsaid=unsaid)

    async def _opens_with(self, connection: socket.socket) -> bytes:
        """Its first byte, which stays where it is; none where it ended at once."""
        while True:
            with contextlib.suppress(BlockingIOError):
                return connection.recv(1, socket.MSG_PEEK)
            is_here = self._loop.create_future()
            self._loop.add_reader(connection.fileno(), _tell, is_here)
            try:
                await is_here
            finally:
                self._loop.remove_reader(connection.fileno())


def _tell(is_here: asyncio.Future[None]) -> None:
    if not is_here.done():
        is_here.set_result(None)


async def listening_sockets(host: str | None, port: int) -> list[socket.socket]:
    """Non-blocking ones; None stands for every address of this machine. Raises OSError."""
    if host is None:
        if socket.has_dualstack_ipv6():
            found = [socket.create_server(("", port), family=socket.AF_INET6, backlog=_WAITING, dualstack_ipv6=True)]
        else:
            found = [socket.create_server(("", port), backlog=_WAITING)]
    else:
        known = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        places = dict.fromkeys((family, address) for family, _, _, _, address in known)
        found = []
        try:
            for family, address in places:
                found.append(socket.create_server(address[:2], family=family, backlog=_WAITING))
        except OSError:
            for one in found:
                one.close()
            raise
    for one in found:
        one.setblocking(False)
    return found
