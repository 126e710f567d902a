"""What one REST connection may take of us, and the words for what breaks the bounds or the protocol. Pure.

The bounds are those of Apache's mod_reqtimeout: a request's header comes within a time and a size, its body at a least
rate (a slow caller earns time with every byte), and an answer is taken at some rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import httptools

from infaas.domain.query import Code
from infaas.errors import InfaasError


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may take of us."""

    header_bytes: int = 64 * 1024
    patience_s: float = 20.0
    """For a header to come whole, for a body to begin to come, for an answer to be taken in part."""
    least_bytes_per_s: float = 1024.0
    linger_s: float = 5.0
    """How long the rest of a refused request is read and thrown away."""
    connections: int = 4096
    """Open at one time on one listener. One more is told so and closed."""
    told: int = 64
    """Connections beyond that which may still be open while they are told; the next are closed without a word."""


class HeaderTooLargeError(Exception):
    """Raised inside the parser's callback; the parser hands it on."""


class NoPathError(Exception):
    """The same, for a request that wants a tunnel."""


class AfterLastError(Exception):
    """The same, for what comes after the connection's last request."""


def allowed_s(limits: Limits, received_bytes: int, *, is_header: bool) -> float:
    """How long after its first byte a request of which `received_bytes` came may still be incomplete."""
    if is_header:
        return limits.patience_s
    return limits.patience_s + received_bytes / limits.least_bytes_per_s


def header_too_large(limits: Limits) -> tuple[int, InfaasError]:
    text = (
        f"the request's line and header fields take more than {limits.header_bytes} bytes; send fewer or shorter ones"
    )
    return 431, InfaasError(text, code=Code.TOO_LARGE)


def explained(error: httptools.HttpParserError, limits: Limits) -> tuple[int, InfaasError]:
    """Status and words for what the parser could not take."""
    cause = error.__context__
    if isinstance(cause, HeaderTooLargeError):
        return header_too_large(limits)
    if cause is not None:  # raised by a callback: only the target is parsed there
        return 400, InfaasError("the request's target is no path, as in 'POST /v2/models/m/infer'", code=Code.INVALID)
    return 400, InfaasError(f"not a valid HTTP/1.1 request: {error}", code=Code.INVALID)
