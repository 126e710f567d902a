"""Who may call."""

from __future__ import annotations

import pytest
from infaas_controller.api.auth import Authenticator

from infaas.errors import UnauthenticatedError
from infaas.tokens import Tokens


def test_without_a_token_everyone_is_welcome() -> None:
    Authenticator(Tokens.of(None)).check(None)
    Authenticator(Tokens.of(None)).check("Bearer anything")


@pytest.mark.parametrize("sent", ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret "])
def test_the_right_token_is_taken(sent: str) -> None:
    Authenticator(Tokens.of("s3cret")).check(sent)


@pytest.mark.parametrize("sent", [None, "", "s3cret", "Bearer", "Bearer ", "Bearer S3cret", "Basic s3cret", "Bearer é"])
def test_anything_else_is_refused_without_saying_what_was_near(sent: str | None) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        Authenticator(Tokens.of("s3cret")).check(sent)
    assert "s3cret" not in caught.value.text
