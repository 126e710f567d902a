"""What a caller saw of one query, the same for REST and gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OK = "ok"
BROKEN = "connection-broken"
HUNG = "hung"
"""Nothing came within the caller's patience."""
UNFINISHED = "unfinished"
"""The run was ended while the query was on its way."""
FOREIGN = "foreign-answer"
"""An error that is not in our words: something between, or another server."""


@dataclass(frozen=True, slots=True)
class Reply:
    """`fields` are the answer's headers, or its gRPC metadata: their names are the same."""

    code: str
    """`ok`, an error's slug, or one of the words above."""
    is_retryable: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
