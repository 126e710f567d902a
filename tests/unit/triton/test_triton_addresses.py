"""Which addresses of Triton servers are understood, how they are dialled, and which are nobody's to name."""

from __future__ import annotations

import pytest

from infaas.errors import InvalidError
from infaas.triton.address import Address, dial_problem, parse_address, url_problem


@pytest.mark.parametrize(
    ("url", "address", "target"),
    [
        ("grpc://triton:8001", Address("triton", 8001, False), "dns:///triton:8001"),
        ("grpcs://triton.example.:443/", Address("triton.example.", 443, True), "dns:///triton.example.:443"),
        ("grpc://10.0.0.7:65535", Address("10.0.0.7", 65535, False), "dns:///10.0.0.7:65535"),
        ("grpc://[::1]:1", Address("::1", 1, False), "dns:///[::1]:1"),
        ("grpc://unix:8001", Address("unix", 8001, False), "dns:///unix:8001"),
    ],
)
def test_an_address_is_read_and_dialled_as_it_is_meant(url: str, address: Address, target: str) -> None:
    assert url_problem(url) is None
    assert parse_address(url) == address
    assert parse_address(url).target == target


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://triton:8000", "8001 unless it was told otherwise"),
        ("triton:8001", "grpc://HOST:PORT"),
        ("grpc://triton", "grpc://HOST:PORT"),
        ("grpc://:8001", "grpc://HOST:PORT"),
        ("grpc://triton:", "grpc://HOST:PORT"),
        ("grpc://triton:0", "from 1 to 65535, not 0"),
        ("grpc://triton:65536", "grpc://HOST:PORT"),
        ("grpc://triton:99999", "grpc://HOST:PORT"),
        ("grpc://triton:-1", "grpc://HOST:PORT"),
        ("grpc://triton:80x", "grpc://HOST:PORT"),
        ("grpc://triton:8001/v2", "grpc://HOST:PORT"),
        ("grpc://triton:8001?a=b", "grpc://HOST:PORT"),
        ("grpc://triton:8001#a", "grpc://HOST:PORT"),
        ("grpc://tri ton:8001", "grpc://HOST:PORT"),
        ("grpc://tri\nton:8001", "grpc://HOST:PORT"),
        ("grpc://-x:8001", "neither the name of a host nor an IP address"),
        ("grpc://a..b:8001", "neither the name of a host nor an IP address"),
        ("grpc://[::1:8001", "grpc://HOST:PORT"),
        ("grpc://a,b:8001", "neither the name of a host"),
        ("unix:///tmp/socket", "grpc://HOST:PORT"),
    ],
)
def test_what_is_no_address_of_a_server_is_refused_in_words(url: str, words: str) -> None:
    assert words in (url_problem(url) or "")
    with pytest.raises(InvalidError):
        parse_address(url)


def test_a_password_in_an_address_is_not_repeated() -> None:
    problem = url_problem("grpc://user:secret@triton:8001")
    assert problem is not None
    assert "secret" not in problem


@pytest.mark.parametrize(
    ("resolved", "is_refused"),
    [
        (["10.1.2.3", "192.168.0.1", "127.0.0.1", "::1", "2001:db8::1"], False),
        (["10.1.2.3", "169.254.169.254"], True),
        (["fe80::1%eth0"], True),
        (["::ffff:169.254.169.254"], True),
        (["fd00:ec2::254"], True),
        (["100.100.100.200"], True),
    ],
)
def test_addresses_where_clouds_tell_their_secrets_are_not_dialled(resolved: list[str], is_refused: bool) -> None:
    problem = dial_problem("grpc://triton:8001", resolved)
    assert (problem is not None) == is_refused
    assert not is_refused or "worker.triton_url" in (problem or "")
