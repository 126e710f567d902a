"""Runs that are so brief that the loop performs them itself: which those are, and what notices when one hangs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from infaas_worker import watch
from infaas_worker.decide import hang
from infaas_worker.decide.brief import BRIEF_S, brief_items
from infaas_worker.executors.base import Brief
from infaas_worker.executors.onnxruntime import OnnxRuntimeExecutor

from infaas.domain.tensor import Datatype
from infaas.testing import graphs
from infaas.testing.builders import a_variant

WAIT_S = 20.0
TINY = {"p95_ms": 0.02, "per_item_ms": 0.001, "threads": 1}


def test_a_batch_is_brief_up_to_where_the_profile_says_so_and_never_beyond_the_most() -> None:
    profile = a_variant(p95_ms=0.05, per_item_ms=0.01).profile
    assert profile is not None
    items = brief_items(profile, 32)
    assert 1 < items < 32
    assert profile.latency_s(items, "p50_s") <= BRIEF_S < profile.latency_s(items + 1, "p50_s")
    assert brief_items(profile, items - 1) == items - 1
    assert brief_items(a_variant(p95_ms=1.0).profile, 32) == 0


def test_what_was_not_measured_is_not_brief() -> None:
    assert brief_items(None, 32) == 0


def most(graph: graphs.Graph, folder: Path, **facts: object) -> int:
    """Up to how many items the loop would run itself."""
    model = OnnxRuntimeExecutor().load(graph.variant(**(TINY | facts)), graph.write(folder))
    assert isinstance(model, Brief)
    found = max((items for items in range(1, 65) if model.is_brief(items)), default=0)
    model.close()
    return found


def test_a_tiny_graph_of_fixed_shapes_is_run_by_the_loop(tmp_path: Path) -> None:
    assert most(graphs.double(), tmp_path) == 32
    assert most(graphs.brittle(), tmp_path, max_batch=8) == 8


@pytest.mark.parametrize(
    ("graph", "facts"),
    [
        (graphs.deadly(), {}),
        (graphs.slow(2), {}),
        (graphs.open_width(), {}),
        (graphs.echo(Datatype.BYTES), {}),
        (graphs.double(), {"threads": 2}),
        (graphs.double(), {"p95_ms": 5.0}),
        (graphs.double(), {"has_profile": False}),
    ],
    ids=["it may loop", "it loops", "rows of any width", "strings", "two threads", "not that quick", "not measured"],
)
def test_what_may_take_longer_than_measured_is_left_to_its_thread(
    tmp_path: Path, graph: graphs.Graph, facts: dict[str, object]
) -> None:
    assert most(graph, tmp_path, **facts) == 0


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released as a look begins: once it was acquired twice, a whole look is over. Looks come one after the other."""
    begun = threading.Semaphore(0)

    def paused_s(last: float, now: float, period_s: float) -> float:
        begun.release()
        return hang.paused_s(last, now, period_s)

    monkeypatch.setattr(watch, "paused_s", paused_s)
    monkeypatch.setattr(watch, "_LOOK_EVERY_S", 0.01)
    return begun


def seen_whole(looks: threading.Semaphore) -> None:
    """Returns when a look that began after the call is over."""
    while looks.acquire(blocking=False):
        pass
    for _ in range(3):
        assert looks.acquire(timeout=WAIT_S)


def test_a_run_that_hangs_is_noticed_from_outside_and_named(looks: threading.Semaphore) -> None:
    found: list[str] = []
    told = threading.Event()

    def on_hung(reason: str) -> None:
        found.append(reason)
        told.set()

    watching = watch.Watch(0.0, on_hung)
    watching.began("instance i1 of v1")
    watching.start()
    assert told.wait(WAIT_S)
    watching.stop()
    (reason,) = found
    assert reason.startswith("instance i1 of v1 hung for ")
    assert reason.endswith("a run of it is given 0.0 s")


def test_runs_that_end_are_nobodys_hang(looks: threading.Semaphore) -> None:
    found: list[str] = []
    watching = watch.Watch(0.0, found.append)
    watching.began("instance i1 of v1")
    watching.ended()
    watching.start()
    seen_whole(looks)
    watching.stop()
    assert found == [], "nothing ran when it looked"


def test_a_run_that_takes_no_longer_than_it_may_is_no_hang(looks: threading.Semaphore) -> None:
    found: list[str] = []
    watching = watch.Watch(60.0, found.append)
    watching.start()
    watching.began("instance i1 of v1")
    seen_whole(looks)
    watching.stop()
    assert found == []
