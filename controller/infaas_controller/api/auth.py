"""Who may call: one bearer token for REST, gRPC and metrics, or loopback only when there is none."""

from __future__ import annotations

import hmac
import ipaddress

from infaas.errors import SettingsError, UnauthenticatedError


class Authenticator:
    """Checks the `Authorization` header or metadata key. Without a token everyone who can connect is welcome."""

    def __init__(self, token: str | None) -> None:
        self._expected = None if token is None else token.encode()

    @property
    def is_open(self) -> bool:
        return self._expected is None

    def check(self, authorization: str | None) -> None:
        """Raises UnauthenticatedError; the time it takes does not depend on how much of a token was right."""
        if self._expected is None:
            return
        if not authorization:
            raise UnauthenticatedError("no credential; send 'authorization: Bearer <token>'")
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise UnauthenticatedError("the credential must be 'Bearer <token>'")
        if not hmac.compare_digest(given.strip().encode(), self._expected):
            raise UnauthenticatedError("wrong token")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_safe_binding(host: str, token: str | None) -> None:
    """Raises SettingsError when anyone on the network could call without a credential."""
    if token is None and not is_loopback(host):
        raise SettingsError(
            f"controller.host {host!r} is not a loopback address; without a credential only loopback may be bound. "
            "Set auth.token or auth.token_file, or bind 127.0.0.1"
        )
