"""What `explain` says of a query when the memory has forgotten it."""

from __future__ import annotations

import pytest
from running_system import Scans, member, running, wait_for

from infaas.client import QueryError, Requirements

pytestmark = pytest.mark.long


def test_explain_says_the_same_when_the_memory_has_forgotten(
    tmp_path_factory: pytest.TempPathFactory, scans: Scans
) -> None:
    settings = {
        "INFAAS_GENERATOR__PROFILE_BUDGET_S": "0.05",
        "INFAAS_GENERATOR__MAX_BATCH_SIZE": "4",
        "INFAAS_CONTROLLER__DECISION_MEMORY": "1",
        "INFAAS_CONTROLLER__JOURNAL_SAMPLE": "1.0",
    }
    with running(tmp_path_factory.mktemp("e2e"), settings) as system:
        system.register(member("digits-centroid"))
        with system.client() as client:
            answered = client.infer("digits", scans.rows(0)).served.decision_id
            with pytest.raises(QueryError) as refused:
                client.infer("digits", scans.rows(0), Requirements(slo_accuracy_min=0.9999))
            keys = [key for key in (answered, refused.value.served.decision_id) if key is not None]
            assert len(keys) == 2
            remembered = [client.decision(key) for key in keys]
            assert all(one.candidates for one in remembered)
            assert [one.outcome for one in remembered] == ["answered", "slo-unsatisfiable"]
            for _ in range(2):  # each ring holds one
                client.infer("digits", scans.rows(1))
                with pytest.raises(QueryError):
                    client.infer("digits", scans.rows(1), Requirements(slo_accuracy_min=0.9999))
            wait_for(lambda: len(client.decisions(6)) == 6, "the journal to be written")
            assert [client.decision(key) for key in keys] == remembered
        table = system.infaas("explain", keys[1])
        for one in remembered[1].candidates:
            assert one.variant in table
            assert one.reason in table
