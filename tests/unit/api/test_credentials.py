"""Who may call, and where that lets the server listen."""

from __future__ import annotations

import pytest
from infaas_controller.api.auth import Authenticator, is_loopback, require_safe_binding

from infaas.errors import SettingsError, UnauthenticatedError


def test_without_a_token_everyone_is_welcome() -> None:
    Authenticator(None).check(None)
    Authenticator(None).check("Bearer anything")


@pytest.mark.parametrize("sent", ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret "])
def test_the_right_token_is_taken(sent: str) -> None:
    Authenticator("s3cret").check(sent)


@pytest.mark.parametrize("sent", [None, "", "s3cret", "Bearer", "Bearer ", "Bearer S3cret", "Basic s3cret", "Bearer é"])
def test_anything_else_is_refused_without_saying_what_was_near(sent: str | None) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        Authenticator("s3cret").check(sent)
    assert "s3cret" not in caught.value.text


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_only_loopback_may_be_bound_without_a_token(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    require_safe_binding(host, "s3cret")
    if expected:
        require_safe_binding(host, None)
    else:
        with pytest.raises(SettingsError, match="only loopback may be bound"):
            require_safe_binding(host, None)
