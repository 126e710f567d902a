"""Where a program may listen, with a credential and without."""

from __future__ import annotations

import pytest

from infaas.errors import SettingsError
from infaas.exposure import host_of, is_loopback, require_safe_binding, require_safe_worker
from infaas.settings import load_settings


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


FILES = {f"INFAAS_TLS__{name}_FILE": f"/{name}.pem" for name in ("CERT", "KEY", "CA")}


@pytest.mark.parametrize(
    ("variables", "is_safe"),
    [
        ({}, False),
        ({"INFAAS_AUTH__TOKEN": "x"}, True),
        ({"INFAAS_AUTH__CLUSTER_TOKEN": "x"}, True),
        (FILES, True),
    ],
)
def test_a_worker_beyond_loopback_needs_the_clusters_token_or_certificates(
    variables: dict[str, str], is_safe: bool
) -> None:
    for listen in (None, "unix:/w.sock", "127.0.0.1:9000"):
        require_safe_worker(load_settings(environ={} if listen is None else {"INFAAS_WORKER__LISTEN": listen}))
    settings = load_settings(environ={"INFAAS_WORKER__LISTEN": "0.0.0.0:9000", **variables})
    if is_safe:
        require_safe_worker(settings)
    else:
        with pytest.raises(SettingsError, match=r"^worker\.listen '0\.0\.0\.0' .*Set auth\.cluster_token_file or"):
            require_safe_worker(settings)


@pytest.mark.parametrize("missing", FILES)
def test_certificates_are_given_whole_or_not_at_all(missing: str) -> None:
    with pytest.raises(SettingsError, match=r"tls\.\w+_file is not set"):
        load_settings(environ={name: file for name, file in FILES.items() if name != missing})
