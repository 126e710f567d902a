"""A cluster of the tests' own, when not all of it comes up: nobody is taken for another, and nothing is left."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from infaas.control import PartDocument, SystemDocument
from infaas.errors import UnavailableError
from infaas.rpc.codec import encode
from infaas.testing.cluster import Cluster
from infaas.testing.kept_fleet import running_with_fleet
from infaas.testing.killer import Killer
from infaas.testing.leftovers import leftovers
from infaas.up.crew import Crew, MemberState


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="infaas-") as name:
        yield Path(name)


def announce(cluster: Cluster, controller: str, http_port: int) -> None:
    there = cluster.folder / controller / "run"
    there.mkdir(parents=True)
    (there / "controller.json").write_text(json.dumps({"http_port": http_port, "grpc_port": 2, "metrics_port": 3}))


class CannotStartItsGenerator(Cluster):
    """When that is found out, the fleet has begun."""

    def start(self, name: str) -> None:
        if name == "generator":
            crew = Crew(self.folder / "fleet")
            crew.start("made", ["/bin/sleep", "600"], {}, b"")
            assert [one.state for one in crew.members()] != [MemberState.ENDED]
            raise RuntimeError("no generator")


def test_nothing_of_a_fleet_outlives_a_start_that_failed(folder: Path) -> None:
    cluster = CannotStartItsGenerator(folder, controllers=1, workers=0)
    with pytest.raises(RuntimeError, match="no generator"), running_with_fleet(cluster, folder / "fleet"):
        raise AssertionError("it did start")
    assert Crew(folder / "fleet").members() == []


def test_a_controller_that_has_not_said_where_it_listens_is_not_taken_for_the_next(folder: Path) -> None:
    cluster = Cluster(folder, controllers=2, workers=0)
    announce(cluster, "controller-2", 1)
    assert cluster.urls() == [cluster.url("controller-2")] == ["http://127.0.0.1:1"]
    assert cluster.metrics_url("controller-2") == "http://127.0.0.1:3"
    with pytest.raises(UnavailableError, match="controller-1 has not said where it listens"):
        cluster.client(0)
    assert cluster.system(0) is None


def test_a_controller_that_is_away_is_told_as_somebody_who_does_not_answer(folder: Path) -> None:
    cluster = Cluster(folder, controllers=1, workers=0)
    cluster.start_redis()
    try:
        (said,) = leftovers(cluster, folder / "fleet")
    finally:
        cluster.kill_redis()
    assert said == "not everybody answers: UnavailableError: controller-1 has not said where it listens"


def test_the_last_controller_that_serves_is_not_wounded_whichever_it_is(folder: Path) -> None:
    cluster = Cluster(folder, controllers=2, workers=0)
    up = PartDocument("up")
    system = SystemDocument("c-2", True, True, up, up, 0, 0, workers=0, workers_connected=0)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: what was asked shows in the answer."""

    body = encode(system)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, name="the second controller").start()
    try:
        announce(cluster, "controller-2", server.server_port)
        killer = Killer(cluster, folder / "fleet", 1)
        assert cluster.system(1) == system
        assert killer._is_last_controller("controller-2"), "the first has not said where it listens"
        assert not killer._is_last_controller("controller-1")
    finally:
        server.shutdown()
        server.server_close()
