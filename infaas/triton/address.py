"""Where a Triton server is: reading its URL, and which addresses nobody should be able to have us dial. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from infaas.errors import InvalidError
from infaas.settings import without_password

_HOST_NAME = re.compile(r"(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?")
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")))
"""Of clouds whose metadata service is not at a link-local address."""


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    """A name, or an IP address without brackets."""
    port: int
    is_encrypted: bool

    @property
    def target(self) -> str:
        """As gRPC dials it. The scheme is said, because gRPC would take some names for schemes of its own."""
        return f"dns:///[{self.host}]:{self.port}" if ":" in self.host else f"dns:///{self.host}:{self.port}"


def parse_address(url: str) -> Address:
    """Raises InvalidError for anything but `grpc://HOST:PORT` and `grpcs://HOST:PORT`."""
    if problem := url_problem(url):
        raise InvalidError(problem)
    parts = urlsplit(url)
    return Address(parts.hostname or "", parts.port or 0, parts.scheme == "grpcs")


def url_problem(url: str) -> str | None:
    """What is wrong with a server's address; None when it can be dialled."""
    form, shown = "a Triton server's address is grpc://HOST:PORT or grpcs://HOST:PORT", without_password(url)
    if url.lower().startswith(("http:", "https:")):
        hint = "tensors go over gRPC, which Triton offers on a port of its own, 8001 unless it was told otherwise"
        return f"{form}, not {shown!r}; {hint}"
    if any(ord(letter) <= ord(" ") or ord(letter) > ord("~") for letter in url):  # urlsplit would leave some out
        return f"{form}, not {shown!r}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"{form}, not {shown!r}: {error}"
    if parts.scheme not in ("grpc", "grpcs") or parts.path not in ("", "/") or "@" in url or "?" in url or "#" in url:
        return f"{form}, not {shown!r}"
    if not host or port is None:
        return f"{form}, not {shown!r}"
    if not 1 <= port <= 65535:
        return f"{form} with a port from 1 to 65535, not {port}"
    if not _is_host(host):
        return f"{form}: {host!r} is neither the name of a host nor an IP address"
    return None


def dial_problem(url: str, resolved: Iterable[str]) -> str | None:
    """Why a server that a caller names must not be dialled, given the IP addresses that its host has; None: it may.

    Link-local addresses are where clouds tell a machine its credentials.
    """
    for text in resolved:
        found = ipaddress.ip_address(text.partition("%")[0])
        plain = getattr(found, "ipv4_mapped", None) or found
        if plain.is_link_local or plain in _METADATA:
            return (
                f"{url} is at {text}, a link-local or metadata address of this machine's network: nothing is attached "
                "from there unless the configuration names it (worker.triton_url)"
            )
    return None


def _is_host(host: str) -> bool:
    if ":" not in host:
        return _HOST_NAME.fullmatch(host) is not None
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
