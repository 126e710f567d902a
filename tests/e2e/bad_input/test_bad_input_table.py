"""The table of bad input: every kind over both protocols gets its status, slug and words, and leaves nothing behind.

With `-s`, or with a file named by INFAAS_TEST_BAD_INPUT_TABLE, the run says what each caller saw.
"""

from __future__ import annotations

import bad_grpc
import bad_rest
import pytest
from guarded_system import Guarded, Table
from raw_callers import rest

pytestmark = pytest.mark.long


@pytest.mark.parametrize("case", bad_rest.ALL, ids=lambda case: case.name)
def test_bad_input_over_rest_is_refused_in_words(guarded: Guarded, table: Table, case: bad_rest.Case) -> None:
    seen = rest(guarded.port, *case.pieces())
    table.note("REST", case.name, seen)
    assert (seen.status, seen.code) == (case.status, case.code), seen
    assert all(words in seen.text for words in case.words), seen.text
    assert len(seen.text) < 5_000
    guarded.assert_nothing_is_held()


@pytest.mark.parametrize("case", bad_grpc.ALL, ids=lambda case: case.name)
def test_bad_input_over_grpc_is_refused_in_words(guarded: Guarded, table: Table, case: bad_grpc.Case) -> None:
    seen = guarded.grpc.call(
        case.message(), case.metadata, method=case.method, has_credential=case.has_credential
    )  # fmt: skip
    table.note("gRPC", case.name, seen)
    assert (seen.status, seen.code) == (case.status, case.code), seen
    assert all(words in seen.text for words in case.words), seen.text
    guarded.assert_nothing_is_held()


def test_it_serves_as_before(guarded: Guarded) -> None:
    guarded.assert_it_serves()
