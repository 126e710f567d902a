"""`infaas up` with its catalogue in a PostgreSQL: the same commands, and no password anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from running_system import TASK, Scans, ask_until_answered, member, running

from infaas.testing.postgresql import PostgresServer

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
MODEL = "digits-mlp"


def test_a_local_system_keeps_its_catalogue_in_postgresql(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory, scans: Scans
) -> None:
    folder = tmp_path_factory.mktemp("e2e")
    url = postgres_server.url(postgres_server.new_database())
    settings = {"INFAAS_CATALOG__DATABASE_URL": url}
    for _ in range(2):  # the second one finds what the first one registered
        with running(folder, settings) as system:
            if "READY" not in system.infaas("model", "list"):
                system.register(member(MODEL))
            with system.client() as client:
                served = ask_until_answered(client, TASK, scans)
                assert served in {variant.name for variant in client.variants(model=MODEL)}
            shown = system.infaas("status")
            assert "catalogue up" in shown
            assert "[hidden]" in system.infaas("config", "show")
            assert postgres_server.password not in system.infaas("config", "show")
    assert not (folder / "catalog.db").exists()
    secret = url.split(":", 2)[2].split("@", 1)[0]
    for log in Path(folder / "logs").iterdir():
        text = log.read_text()
        assert secret not in text
        assert postgres_server.password not in text
