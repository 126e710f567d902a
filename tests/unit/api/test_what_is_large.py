"""What is too much for the loop to read, by what came and not by what is claimed."""

from __future__ import annotations

import pytest
from infaas_controller.api.bulk.weigh import LOOP_BYTES, is_large_body


@pytest.mark.parametrize(
    ("size", "header_length", "expected"),
    [
        (LOOP_BYTES + 1, None, True),
        (LOOP_BYTES, None, False),
        (300, 1_293_763, False),
        (LOOP_BYTES + 1, 1_293_763, True),
        (LOOP_BYTES + 1, 100, False),
    ],
    ids=["long JSON", "short JSON", "a claim beyond the body", "a long body and more claimed", "long tensors only"],
)
def test_a_body_is_large_by_the_json_that_is_there(size: int, header_length: int | None, expected: bool) -> None:
    assert is_large_body(memoryview(bytes(size)), header_length) is expected
