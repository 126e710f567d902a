"""Nobody asks anything for a while, and then somebody does: whatever was scaled to nothing comes back for them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from infaas.client import QueryError
from infaas.domain.query import Code
from infaas.testing.cluster import wait_for
from infaas.testing.quiet import ask_once, cluster_that_scales, fleet_size, no_numbers, replicas

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
MODEL = "digits-cnn-medium"
TRIES = 2
"""One for each controller."""


def test_what_was_unloaded_for_want_of_queries_is_loaded_for_the_first_that_comes() -> None:
    """How soon it answers is for `benchmarks/quiet.py` to say."""
    with (
        tempfile.TemporaryDirectory(prefix="infaas-", ignore_cleanup_errors=True) as folder,
        cluster_that_scales(Path(folder), min_workers=1, unload_after_s=4.0, shrink_after_s=3.0) as cluster,
    ):
        cluster.register(MODEL)
        for number in range(TRIES):
            wait_for(lambda: replicas(cluster) == 0, "what nobody asks for to be unloaded")
            assert fleet_size(cluster) == 1, "the floor"
            assert no_numbers(cluster) == []
            assert ask_once(cluster, MODEL, number).was_cold


def test_of_no_workers_at_all_a_query_is_refused_with_the_reason_and_brings_one() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="infaas-", ignore_cleanup_errors=True) as folder,
        cluster_that_scales(Path(folder), min_workers=0, unload_after_s=30.0, shrink_after_s=4.0) as cluster,
    ):
        cluster.register(MODEL)
        wait_for(lambda: fleet_size(cluster) == 0, "the last worker to be taken back")
        assert no_numbers(cluster) == []
        with pytest.raises(QueryError, match="none of 0 known") as refused:
            ask_once(cluster, MODEL)
        assert refused.value.code is Code.NO_WORKER
        assert refused.value.is_retryable
        wait_for(lambda: cluster.connected() == 1, "a worker for whoever asks again")
        assert ask_once(cluster, MODEL).was_cold
        wait_for(lambda: fleet_size(cluster) == 0, "it to be taken back")
        assert no_numbers(cluster) == []
