"""A link between two unix sockets that can be slowed down, as a congested network would, or cut, as by a partition."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from pathlib import Path

_CHUNK = 65536


class SlowLink:
    """Forwards every connection on `near` to `far`; `delay_s` is what each piece of data takes in either direction.

    Runs on a thread and loop of its own, so that whoever tests may block.
    """

    def __init__(self, far: Path, near: Path) -> None:
        self.delay_s = 0.0
        self._far = far
        self._near = near
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="slow-link", daemon=True)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._transports: weakref.WeakSet[asyncio.WriteTransport] = weakref.WeakSet()
        """The loop keeps each until its socket is closed."""
        self._is_stopping = False
        self._is_whole = asyncio.Event()
        self._is_whole.set()

    def cut(self) -> None:
        """Nothing passes until `mend`: whoever sends hears nothing, connections stay open, and new ones are taken."""
        self._loop.call_soon_threadsafe(self._is_whole.clear)

    def mend(self) -> None:
        """What was sent meanwhile arrives."""
        self._loop.call_soon_threadsafe(self._is_whole.set)

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self._near)

    async def _close(self) -> None:
        """Returns with every socket closed: nothing would close what is left when the loop is."""
        assert self._server is not None
        self._is_stopping = True
        self._server.close()
        while self._open:
            for task in self._open:
                task.cancel()
            await asyncio.wait(self._open)
        for transport in list(self._transports):
            transport.abort()  # whatever it still had to send
        await asyncio.sleep(0)  # the loop closes an aborted socket in its next turn

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self._transports.add(writer.transport)
        try:
            if not self._is_stopping:
                await self._forward(reader, writer)
        except asyncio.CancelledError:
            if not self._is_stopping:
                raise  # else an end like any other: `asyncio.streams` would log it as an error
        except OSError:
            return  # what a refused connection looks like from behind a proxy
        finally:
            writer.close()
            self._open.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Raises OSError when nobody listens on the far side."""
        far_reader, far_writer = await asyncio.open_unix_connection(self._far)
        self._transports.add(far_writer.transport)
        ways = [
            asyncio.create_task(self._carry(reader, far_writer), name="slow-link-there"),
            asyncio.create_task(self._carry(far_reader, writer), name="slow-link-back"),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            far_writer.close()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):  # one side left: the other is told by closing
            while data := await reader.read(_CHUNK):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._is_whole.wait()
                writer.write(data)
                await writer.drain()
