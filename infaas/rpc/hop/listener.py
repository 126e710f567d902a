"""A worker's one address: controllers' framed connections are taken here, gRPC calls are passed on behind it.

Which of the two a caller speaks is told by its first bytes. gRPC serves the few calls that are not worth frames of
their own (leases of cores, drain and resume, health), on a private socket that only this listener dials.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import cast

from google.protobuf.message import DecodeError

from infaas.errors import InfaasError, InvalidError, UnauthenticatedError, UnsupportedError
from infaas.observe.log import get_logger
from infaas.observe.seldom import Seldom
from infaas.rpc.hop import address
from infaas.rpc.hop.endpoint import LINGER_S, Connection, Endpoint, Handler, refused_version
from infaas.rpc.hop.frames import HELLO_LIMIT_BYTES, SCRATCH_BYTES, VERSION, agreed_version
from infaas.rpc.hop.inner import InnerEnd, pair
from infaas.rpc.hop.secured import TlsServer
from infaas.rpc.tls import Tls
from infaas.rpc.v1 import worker_pb2 as pb

HELLO_WITHIN_S = 5.0
ABSENT_AFTER_S = 15.0
"""Silence after which a controller is taken for lost. Controllers beat far more often."""
_TLS_HANDSHAKE = b"\x16\x03"
_log = get_logger(__name__)

Admit = Callable[[pb.Hello, Connection], Handler]
"""Whose the connection is from now on. Raises InfaasError to turn the controller away."""


class Listener:
    """Open from `start` to `close`. `control` is where gRPC listens (`unix:/path`); None: nothing does. `tls`: with it
    a host's address is secured."""

    def __init__(self, admit: Admit, control: str | None = None, tls: Tls | None = None) -> None:
        self._tls = tls
        self._admit = admit
        self._control = control
        self._server: asyncio.Server | TlsServer | None = None
        self._endpoints: set[Connection] = set()
        self._pipes: set[asyncio.Task[None]] = set()
        self._seldom = Seldom()

    async def start(self, listen: str) -> str:
        """Returns the address with its port. Raises OSError or InvalidError when it cannot be taken."""
        self._server, bound = await address.listen(listen, self._accept, self._tls, self._accept_plain)
        return bound

    def meet(self, handler: Handler) -> InnerEnd:
        """A controller in this process and on this loop connects: its end. It says hello as any other. Raises
        ConnectionRefusedError unless the listener is open."""
        if self._server is None or not self._server.is_serving():
            raise ConnectionRefusedError("nobody listens there")
        caller = _Caller(self._admit, self._pass_on, self._seldom)
        near, caller.endpoint = pair(handler, caller)
        caller.endpoint.serve(caller, limit_bytes=HELLO_LIMIT_BYTES)
        self._expect(caller)
        return near

    async def close(self, grace_s: float = 0.0) -> None:
        """What was sent has that long to leave; then every connection is cut."""
        if self._server is not None:
            self._server.close()
        endpoints = list(self._endpoints)
        for endpoint in endpoints:
            endpoint.close("the worker stopped")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await asyncio.gather(*(endpoint.gone() for endpoint in endpoints))
        for endpoint in endpoints:
            endpoint.cut("the worker stopped")
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*(endpoint.gone() for endpoint in endpoints), *self._pipes, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def _accept(self) -> Endpoint:
        return self._receive(_Caller(self._admit, self._pass_on, self._seldom))

    def _accept_plain(self) -> Endpoint:
        """Where all are to come with TLS: nothing that it says is taken, but it is told why."""
        return self._receive(_Caller(_refuse_plain, lambda _endpoint, _first: None, self._seldom))

    def _receive(self, caller: _Caller) -> Endpoint:
        endpoint = caller.endpoint = Endpoint(caller, silence_s=HELLO_WITHIN_S, limit_bytes=HELLO_LIMIT_BYTES)
        self._expect(caller)
        return endpoint

    def _expect(self, caller: _Caller) -> None:
        endpoint = caller.endpoint
        asyncio.get_running_loop().call_later(HELLO_WITHIN_S, caller.expire)
        self._endpoints.add(endpoint)
        endpoint.ended.add_done_callback(lambda _: self._endpoints.discard(endpoint))

    def _pass_on(self, endpoint: Connection, first: bytes) -> None:
        if self._control is None or not isinstance(endpoint, Endpoint) or _is_tls(first):
            return
        near = _Pipe()
        transport = endpoint.give_away(near)
        transport.pause_reading()  # until there is somebody to hand it to
        task = asyncio.get_running_loop().create_task(_join(near, transport, first, self._control), name="hop-pipe")
        self._pipes.add(task)
        task.add_done_callback(self._pipes.discard)


class _Caller:
    """A connection until its first message: a `Handler`."""

    endpoint: Connection

    def __init__(self, admit: Admit, pass_on: Callable[[Connection, bytes], None], seldom: Seldom) -> None:
        self._seldom = seldom
        self._admit = admit
        self._pass_on = pass_on
        self._is_admitted = False

    def expire(self) -> None:
        if not self._is_admitted:
            self.endpoint.cut(f"it did not say who it is within {HELLO_WITHIN_S:g} s")

    def met(self, version: int) -> None:
        agreed = agreed_version(version)
        self.endpoint.greet(VERSION if agreed is None else agreed)
        if agreed is None:
            self._refuse(UnsupportedError(refused_version(version)))

    def stranger(self, first: bytes) -> None:
        if _is_tls(first) and (unsaid := self._seldom.unsaid("tls")) is not None:
            _log.warning("a peer came with TLS, for which the tls settings are missing here", unsaid=unsaid)
        self._pass_on(self.endpoint, first)

    def received(self, head: bytes, payload: memoryview) -> None:
        try:
            try:
                message = pb.ControllerMessage.FromString(head)
            except DecodeError as error:
                raise InvalidError(f"the first message cannot be read: {error}") from error
            if message.WhichOneof("body") != "hello":
                raise InvalidError("the first message must be Hello")
            handler = self._admit(message.hello, self.endpoint)
        except InfaasError as error:
            self._refuse(error)
        else:
            self._is_admitted = True
            self.endpoint.serve(handler, silence_s=ABSENT_AFTER_S)

    def congested(self, is_congested: bool) -> None:
        """Next to nothing is written before the first message."""

    def lost(self, reason: str) -> None:
        _log.debug("a caller did not become a controller", reason=reason)

    def _refuse(self, error: InfaasError) -> None:
        unsaid = self._seldom.unsaid((error.code, error.text))
        if unsaid is not None:  # whoever is refused comes again and again
            _log.warning("a controller was refused", code=error.code.value, reason=error.text, unsaid=unsaid)
        refusal = pb.Refusal(error_code=error.code.value, reason=error.text)
        self.endpoint.send(pb.WorkerMessage(refusal=refusal).SerializeToString())
        self.endpoint.close(f"refused: {error.text}")


def _is_tls(first: bytes) -> bool:
    return first.startswith(_TLS_HANDSHAKE)


def _refuse_plain(hello: pb.Hello, endpoint: Connection) -> Handler:
    raise UnauthenticatedError(
        "this worker takes connections with TLS only: set tls.cert_file, tls.key_file and tls.ca_file"
    )


class _Pipe(asyncio.BufferedProtocol):
    """One of two connections whose bytes are handed to each other, no faster than they are taken."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(SCRATCH_BYTES))
        self._transport: asyncio.Transport | None = None
        self.other: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.other is not None:
            self.other.write(bytes(self._buffer[:nbytes]))

    def pause_writing(self) -> None:
        if self.other is not None and self.other.is_reading():
            self.other.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.is_closing() and not self.other.is_reading():
            self.other.resume_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def _join(near: _Pipe, transport: asyncio.Transport, first: bytes, control: str) -> None:
    """Until either side ends it; then the other is ended too. Cancelled, both are cut."""
    near.connection_made(transport)
    far = _Pipe()
    far.other = transport
    both = [transport]
    try:
        await address.dial(control, lambda: far)
        near.other = far.transport
        both.append(far.transport)
        far.transport.write(first)
        transport.resume_reading()
        await asyncio.wait((near.ended, far.ended), return_when=asyncio.FIRST_COMPLETED)
    except OSError as error:
        _log.warning("nobody answers gRPC calls", control=control, reason=str(error))
    except asyncio.CancelledError:
        for one in both:
            one.abort()
        raise
    for one in both:
        one.close()
    await asyncio.wait((near.ended,), timeout=LINGER_S)
    transport.abort()
