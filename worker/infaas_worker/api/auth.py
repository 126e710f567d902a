"""Who may talk to the worker: whoever shows the token, when one is set."""

from __future__ import annotations

import hmac
from collections.abc import Iterable


def is_allowed(metadata: Iterable[tuple[str, str | bytes]] | None, token: str | None) -> bool:
    """For a call with metadata. Compared in constant time."""
    if token is None:
        return True
    want = f"Bearer {token}".encode()
    for key, value in metadata or ():
        if key.lower() == "authorization":
            got = value if isinstance(value, bytes) else value.encode()
            return hmac.compare_digest(got, want)
    return False


def is_token(given: str, token: str | None) -> bool:
    """For a connection that opens with a token. Compared in constant time."""
    return token is None or hmac.compare_digest(given.encode(), token.encode())
