"""What a user is told when a system cannot be brought up as asked, with another one running."""

from __future__ import annotations

from pathlib import Path

import pytest
from running_system import FREE_PORTS, System

from infaas.up.record import is_up


@pytest.mark.long
def test_a_taken_port_an_open_address_and_a_second_start_are_refused_in_words(
    fresh_system: System, tmp_path: Path
) -> None:
    taken = fresh_system.endpoints
    other = System(tmp_path / "other")
    try:
        ports = ("--http-port", str(taken.http_port), "--grpc-port", str(taken.grpc_port), "--metrics-port", "0")
        said = other.infaas("up", "--detach", *ports, expect=1)
        for port, flag in ((taken.http_port, "--http-port"), (taken.grpc_port, "--grpc-port")):
            assert f"port {port} on 127.0.0.1 is taken" in said
            assert f"{flag} 0 picks a free one" in said

        said = other.infaas("up", "--detach", *FREE_PORTS, "--host", "0.0.0.0", expect=1)
        assert "without a credential only loopback may be bound" in said

        assert not (other.folder / "run" / "up.json").exists(), "nothing was started"

        # The same folder by the foreground form, which becomes the supervisor itself.
        said = fresh_system.infaas("up", *FREE_PORTS, expect=2)
        assert f"already up in {fresh_system.folder} (pid {fresh_system.record.pid})" in said
        assert is_up(fresh_system.record)
        assert fresh_system.endpoints == taken
    finally:
        other.close()
