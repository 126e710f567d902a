"""Who may talk to the worker: whoever sends the bearer token, when one is set."""

from __future__ import annotations

import hmac
from collections.abc import Iterable


def is_allowed(metadata: Iterable[tuple[str, str | bytes]] | None, token: str | None) -> bool:
    """Compared in constant time."""
    if token is None:
        return True
    want = f"Bearer {token}".encode()
    for key, value in metadata or ():
        if key.lower() == "authorization":
            got = value if isinstance(value, bytes) else value.encode()
            return hmac.compare_digest(got, want)
    return False
