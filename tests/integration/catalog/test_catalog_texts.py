"""Texts that come from callers and models, in every kind of database."""

from __future__ import annotations

import pytest

from infaas.catalog.catalog import Catalog
from infaas.catalog.lost import reason_of
from infaas.domain.ids import DecisionId, TaskName
from infaas.domain.query import Decision, Level

ODD = ("a\0b", "half \ud800 a pair", "x" * 5_000, "ünï ☃ 𝄞", "'; DROP TABLE decisions; --", "")


def a_decision(request_id: str, reason: str) -> Decision:
    at = "2026-01-01T00:00:00.000Z"
    return Decision(
        DecisionId("d-1"), request_id, at, "digits", Level.TASK, TaskName("digits"), "slo", {}, "saturated", reason
    )


@pytest.mark.parametrize("text", ODD)
def test_a_decision_is_kept_whatever_its_caller_called_it(catalog: Catalog, text: str) -> None:
    # A surrogate cannot even be encoded as JSON: it is refused at the edge and never comes here in a decision's body.
    reason = text if text.isprintable() else "because"
    decision = a_decision(text.encode("utf-8", "replace").decode(), reason)
    catalog.write_decisions([decision])
    assert catalog.decision("d-1") == decision
    found = catalog.decision(decision.request_id[:255])
    assert found == decision


@pytest.mark.parametrize("text", ODD)
def test_any_text_can_be_an_idempotency_key(catalog: Catalog, text: str) -> None:
    assert catalog.claim_key(text, "f" * 64, at=1.0) is None
    catalog.keep_answer(text, "answer")
    assert catalog.claim_key(text, "f" * 64, at=2.0) == "answer"


def test_a_reason_says_what_the_driver_said_without_the_statement(catalog: Catalog) -> None:
    import sqlalchemy as sa

    with pytest.raises(sa.exc.DBAPIError) as error, catalog.engine.connect() as connection:
        connection.execute(sa.text("SELECT :secret FROM nowhere"), {"secret": "hunter2"})
    reason = reason_of(error.value)
    assert "nowhere" in reason
    assert "\n" not in reason
    assert "hunter2" not in reason
    assert "SELECT" not in reason.split("LINE 1", 1)[0]
    assert "hunter2" not in str(error.value)
