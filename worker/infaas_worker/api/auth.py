"""What a caller of the worker without the right token is told: what to set, and where."""

from __future__ import annotations

from collections.abc import Iterable

_SET = "set auth.cluster_token, or auth.token where there is no other, to the same as this worker's (or its _file)"
NO_WORD = f"no token came; {_SET}"
WRONG_WORD = f"a wrong token came; {_SET}"


def refusal(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """For a gRPC call with these metadata."""
    has_one = any(key.lower() == "authorization" for key, _ in metadata or ())
    return WRONG_WORD if has_one else NO_WORD
