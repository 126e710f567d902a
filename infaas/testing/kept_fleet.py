"""A cluster whose controllers keep a fleet of the provider `local`: what they make outlives them, and not the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infaas.testing.cluster import Cluster
from infaas.up.crew import Crew


@contextmanager
def running_with_fleet(cluster: Cluster, fleet: Path) -> Iterator[Cluster]:
    """`cluster.running()`; whatever happens, also while it starts, none of the fleet is left. `fleet`: its folder."""
    try:
        with cluster.running():
            yield cluster
    finally:
        left = Crew(fleet).end_all(0.0)  # nobody makes another one now
    if left:
        raise RuntimeError(f"of the fleet {left} is left")
