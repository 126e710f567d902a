"""What is said of a part that a controller depends on."""

from __future__ import annotations

import pytest
from infaas_controller.system import LOST, READ_ONLY, UP, part_state


@pytest.mark.parametrize(
    ("is_read", "trouble", "state"),
    [(True, None, UP), (True, "full", READ_ONLY), (False, None, LOST), (False, "full", LOST)],
)
def test_a_part_that_answers_and_takes_no_changes_is_read_only(is_read: bool, trouble: str | None, state: str) -> None:
    assert part_state(is_read=is_read, write_trouble=trouble) == state
