"""Where a worker listens, as records and settings write it: `unix:/path`, `unix-abstract:name` or `host:port`."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from infaas.errors import InvalidError
from infaas.rpc.hop.secured import TlsServer, listening_sockets
from infaas.rpc.tls import GOODBYE_WITHIN_S, HANDSHAKE_WITHIN_S, Tls, in_words

Make = Callable[[], asyncio.BaseProtocol]
_EVERY_HOST = {"", "*", "::"}
"""What stands for all addresses of both families."""


@dataclass(frozen=True, slots=True)
class Place:
    """A path (one that begins with a zero byte is an abstract name), or a host and a port."""

    path: str = ""
    host: str = ""
    port: int = 0


def parse(address: str) -> Place:
    """Raises InvalidError."""
    if address.startswith("unix-abstract:"):
        return Place(path="\0" + address.removeprefix("unix-abstract:"))
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        return Place(path=path.removeprefix("//") if path.startswith("///") else path)
    host, separator, port = address.removeprefix("dns:///").rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise InvalidError(f"the address {address!r} is neither unix:/path nor host:port")
    return Place(host=host.removeprefix("[").removesuffix("]"), port=int(port))


async def dial(address: str, make: Make, tls: Tls | None = None) -> None:
    """Connect a protocol, with `tls` where the address is a host's. Raises OSError when nobody listens there or it is
    not let in, InvalidError for an address that is none."""
    place, loop = parse(address), asyncio.get_running_loop()
    if place.path:
        await loop.create_unix_connection(make, place.path)
    elif tls is None:
        await loop.create_connection(make, place.host, place.port)
    else:
        await _dial_with(tls, place, make)


async def _dial_with(tls: Tls, place: Place, make: Make) -> None:
    try:
        await asyncio.get_running_loop().create_connection(
            make,
            place.host,
            place.port,
            ssl=tls.client(),
            server_hostname=tls.peer_name or place.host,
            ssl_handshake_timeout=HANDSHAKE_WITHIN_S,
            ssl_shutdown_timeout=GOODBYE_WITHIN_S,
        )
    except (ssl.SSLError, ConnectionResetError, ConnectionAbortedError) as error:
        hint = "" if isinstance(error, ssl.SSLCertVerificationError) else "; its own tls settings may be missing"
        raise ConnectionError(f"no TLS connection came of it: {in_words(error)}{hint}") from error


async def listen(
    address: str, make: Make, tls: Tls | None = None, make_plain: Make | None = None
) -> tuple[asyncio.Server | TlsServer, str]:
    """Accept with a protocol each; also returns the address with the port that was found for port 0. With `tls`, hosts'
    addresses are secured, and `make_plain` is for whoever comes without.

    Raises OSError when the place cannot be taken, InvalidError for an address that is none.
    """
    place, loop = parse(address), asyncio.get_running_loop()
    if place.path:
        return await loop.create_unix_server(make, place.path), address
    host = None if place.host in _EVERY_HOST else place.host
    server: asyncio.Server | TlsServer
    if tls is not None:
        server = TlsServer(await listening_sockets(host, place.port), make, make_plain or make, tls)
    else:
        server = await loop.create_server(make, host, place.port, reuse_port=False)
    if place.port:
        return server, address
    return server, f"{address.rpartition(':')[0]}:{server.sockets[0].getsockname()[1]}"
