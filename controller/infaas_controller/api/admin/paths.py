"""Parameters that several routes share."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Path, Request

from infaas.domain.ids import MAX_NAME_LENGTH

Name = Annotated[str, Path(description="A registered name", min_length=1, max_length=MAX_NAME_LENGTH)]
Number = Annotated[int, Path(description="A version's number", ge=1, le=2**31 - 1)]


IdempotencyKey = Annotated[
    str | None, Header(min_length=1, max_length=255, description="Repeating a request under its key is safe")
]


def actor_of(request: Request) -> str:
    """Whom the audit log names: all that one shared token lets us know."""
    return f"rest:{request.client.host}" if request.client is not None else "rest"
