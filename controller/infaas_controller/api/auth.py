"""Who may call: one bearer token for REST, gRPC and metrics (without one, only loopback is bound at all)."""

from __future__ import annotations

import hmac

from infaas.errors import UnauthenticatedError


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
