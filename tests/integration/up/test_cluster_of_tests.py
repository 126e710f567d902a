"""A cluster of the tests' own, when not all of it comes up: nobody is taken for another, and nothing is left."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infaas.errors import UnavailableError
from infaas.testing.cluster import Cluster
from infaas.testing.kept_fleet import running_with_fleet
from infaas.testing.leftovers import leftovers
from infaas.up.crew import Crew, MemberState


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="infaas-") as name:
        yield Path(name)


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
    there = folder / "controller-2" / "run"
    there.mkdir(parents=True)
    (there / "controller.json").write_text(json.dumps({"http_port": 1, "grpc_port": 2, "metrics_port": 3}))
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
