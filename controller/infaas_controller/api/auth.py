"""Who may call: one bearer token for REST, gRPC and metrics (without one, only loopback is bound at all)."""

from __future__ import annotations

from infaas.errors import UnauthenticatedError
from infaas.tokens import Tokens


class Authenticator:
    """Checks the `Authorization` header or metadata key. Without a token everyone who can connect is welcome."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    @property
    def changes(self) -> int:
        """A credential that was good is to be checked again once this is another number."""
        return self._tokens.changes

    def check(self, authorization: str | None) -> None:
        """Raises UnauthenticatedError; the time it takes does not depend on how much of a token was right."""
        if self._tokens.is_open:
            return
        if not authorization:
            raise UnauthenticatedError("no credential; send 'authorization: Bearer <token>'")
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise UnauthenticatedError("the credential must be 'Bearer <token>'")
        if not self._tokens.accepts(given.strip()):
            raise UnauthenticatedError("wrong token")
