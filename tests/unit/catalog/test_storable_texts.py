"""What a database of any kind can keep of a text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infaas.catalog.tables import storable


@given(st.text(st.characters()), st.none() | st.integers(0, 20))
def test_what_is_storable_is_valid_short_enough_and_otherwise_unchanged(text: str, length: int | None) -> None:
    stored = storable(text, length)
    stored.encode()
    assert "\0" not in stored
    assert length is None or len(stored) <= length
    if "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text):
        assert stored == text[:length]
