"""Where a program may listen, with a credential and without."""

from __future__ import annotations

import pytest

from infaas.errors import SettingsError
from infaas.exposure import host_of, is_loopback, require_safe_binding


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
        ("[::]", False),
        ("10.0.0.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_only_loopback_may_be_bound_without_a_token(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    require_safe_binding("controller.host", host, "s3cret")
    if expected:
        require_safe_binding("controller.host", host, None)
    else:
        with pytest.raises(SettingsError, match=r"^controller\.host .*only loopback may be bound"):
            require_safe_binding("controller.host", host, None)


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        ("unix:/run/worker.sock", None),
        ("unix-abstract:worker", None),
        ("0.0.0.0:9000", "0.0.0.0"),
        ("[::1]:9000", "[::1]"),
        (":9000", ""),
    ],
)
def test_the_host_of_an_address_is_what_is_reachable(listen: str, host: str | None) -> None:
    assert host_of(listen) == host
