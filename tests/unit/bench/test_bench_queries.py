"""Queries as they go over the wire, and the rows they are made of."""

from __future__ import annotations

import numpy as np
import pytest

from infaas.bench.mixes import read_sets
from infaas.bench.protocol import Protocol
from infaas.bench.queries import Prepared, Rows
from infaas.errors import InvalidError


@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", "/v2/models/t/infer"),
        ("http://[::1]:8000", "[::1]:8000", "/v2/models/t/infer"),
        ("https://infaas.example", "infaas.example", "/v2/models/t/infer"),
        ("https://me:secret@gate.example:8443/ml/", "gate.example:8443", "/ml/v2/models/t/infer"),
    ],
)
def test_a_query_names_the_host_that_it_is_sent_to_as_the_url_has_it(url: str, host: str, target: str) -> None:
    rows = Rows({"x": np.zeros((1, 1), np.float32)}, 1, {})
    sent = Prepared("t", rows, read_sets(()), Protocol.REST, None, url).query(0, 0)
    line, *fields = sent.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert line == f"POST {target} HTTP/1.1"
    assert [field for field in fields if field.startswith("host:")] == [f"host: {host}"]
    assert b"secret" not in sent


def test_rows_that_are_none_are_refused_in_words() -> None:
    with pytest.raises(InvalidError, match="no rows"):
        Rows({"x": np.zeros((0, 4), np.float32)}, 1, {})
