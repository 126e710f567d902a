"""Whole builds of real graphs: real Redis, real repository, real child processes, real ONNX Runtime."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from infaas_variant_generator.main import Generator

from infaas.domain.variant import AccuracySource, Precision
from infaas.rpc.codec import decode, encode
from infaas.store.base import Kind, MetadataStore
from infaas.store.redis import RedisStore
from infaas.tokens import Tokens

TWO_CORES = frozenset({0, 1})


@pytest.fixture
def generating(workshop: Any) -> Callable[..., Any]:
    """A generator that runs for the length of a `with` block."""

    @asynccontextmanager
    async def run(store: MetadataStore, **settings: Any) -> AsyncIterator[Generator]:
        generator = Generator(
            store, workshop.repository, workshop.settings(**settings), tokens=Tokens.of(None), host="nowhere"
        )
        task = asyncio.create_task(generator.run(), name="generator under test")
        try:
            yield generator
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return run


async def build(workshop: Any, generating: Any, store: MetadataStore, order: Any, **settings: Any) -> Any:
    await store.put(Kind.BUILD, order.id, encode(order))
    async with generating(store, **settings):
        return await workshop.finished(store, order)


async def test_a_build_leaves_measured_variants_that_run(
    workshop: Any, generating: Any, redis_store: RedisStore
) -> None:
    order = workshop.order()
    results = await build(workshop, generating, redis_store, order)
    assert results["*"].outcome == "made"
    assert {"ort-fp32-t1", "ort-int8-t1"} <= results.keys()
    for recipe, precision in (("ort-fp32-t1", Precision.FP32), ("ort-int8-t1", Precision.INT8)):
        result = results[recipe]
        assert result.outcome == "made", result.reason
        variant = result.variant
        assert (variant.name, variant.precision, variant.threads) == (f"dense.v1.{recipe}", precision, 1)
        assert (variant.max_batch_size, variant.fixed_batch) == (4, None)
        profile = variant.profile
        assert [point.batch for point in profile.latency] == [1, 2, 4]
        assert all(0 < point.p50_s <= point.p95_s <= point.p99_s for point in profile.latency)
        assert profile.cold_load_s > 0
        assert profile.warm_load_s > 0
        assert profile.peak_memory_bytes >= 1
        assert profile.cost_usd_per_1k == pytest.approx(0.36 / 3600 * profile.latency[0].mean_s * 1000)
        session = onnxruntime.InferenceSession(workshop.repository.fetch(variant.artifact))
        (scores,) = session.run(["scores"], {"x": workshop.rows})
        found = float((scores.argmax(axis=1) == workshop.labels).mean())
        # Dynamic int8 scales by the whole batch, so another batch size may move a close call.
        assert found == pytest.approx(profile.accuracy.value, abs=0.0 if precision is Precision.FP32 else 0.05)
        with np.load(workshop.repository.fetch(profile.samples)) as samples:
            for point in profile.latency:
                assert (samples["batch"] == point.batch).sum() >= point.samples
    assert results["ort-fp32-t1"].accuracy.value == 1.0
    assert results["ort-fp32-t1"].max_abs_error < 1e-5


async def test_every_recipe_shows_where_it_stands_until_it_is_done(
    workshop: Any, generating: Any, redis_store: RedisStore
) -> None:
    snapshot = await redis_store.list([Kind.PROGRESS])
    stages: dict[str, list[str]] = {}
    done = asyncio.Event()

    async def follow() -> None:
        async for changes in redis_store.watch(snapshot.cursor, snapshot.epoch):
            for change in changes:
                if change.kind is Kind.PROGRESS and change.value is not None:
                    progress = decode(change.value, _progress_type())
                    stages.setdefault(progress.recipe, []).append(progress.stage)
                    if progress.recipe == "*":
                        done.set()

    watching = asyncio.create_task(follow(), name="follow progress")
    await build(workshop, generating, redis_store, workshop.order())
    async with asyncio.timeout(10):
        await done.wait()
    watching.cancel()
    seen = list(dict.fromkeys(stages["ort-fp32-t1"]))
    assert seen == ["planned", "transforming", "verifying", "scoring", "waiting-for-cores", "profiling", "done"]


def _progress_type() -> Any:
    from infaas.domain.build import BuildProgress

    return BuildProgress


async def test_a_fixed_batch_graph_is_made_and_measured_for_that_batch_only(
    workshop: Any, generating: Any, redis_store: RedisStore, fixed_graph: bytes
) -> None:
    order = workshop.order("fixed", fixed_graph, fixed_batch=1, max_batch_size=1)
    results = await build(workshop, generating, redis_store, order)
    variant = results["ort-fp32-t1"].variant
    assert (variant.max_batch_size, variant.fixed_batch) == (1, 1)
    assert [point.batch for point in variant.profile.latency] == [1]
    assert variant.profile.accuracy.value == 1.0


async def test_a_recipe_that_loses_too_much_fails_with_both_scores_and_hurts_no_other(
    workshop: Any, generating: Any, redis_store: RedisStore, fragile_graph: bytes
) -> None:
    order = workshop.order("fragile", fragile_graph)
    results = await build(workshop, generating, redis_store, order)
    assert results["ort-fp32-t1"].outcome == "made"
    failed = results["ort-int8-t1"]
    assert (failed.outcome, failed.variant) == ("failed", None)
    assert "accuracy falls from 1.0000 to" in failed.reason
    assert failed.max_abs_error > 0
    assert results["*"].outcome == "made"


async def test_a_recipe_that_does_not_apply_is_skipped_with_the_reason(
    workshop: Any, generating: Any, redis_store: RedisStore, relu_graph: bytes
) -> None:
    order = workshop.order("relu", relu_graph, evaluation=None, declared_accuracy=0.7)
    results = await build(workshop, generating, redis_store, order)
    assert results["ort-int8-t1"].outcome == "skipped"
    assert "constant weight; the graph has" in results["ort-int8-t1"].reason


async def test_a_declared_accuracy_is_marked_as_such(workshop: Any, generating: Any, redis_store: RedisStore) -> None:
    order = workshop.order("declared", evaluation=None, declared_accuracy=0.87)
    results = await build(workshop, generating, redis_store, order)
    accuracy = results["ort-fp32-t1"].variant.profile.accuracy
    assert (accuracy.value, accuracy.source, accuracy.rows) == (0.87, AccuracySource.DECLARED, 0)
    assert results["ort-int8-t1"].outcome == "made"  # verified on made-up inputs


async def test_rows_of_the_calibration_set_are_never_scored(
    workshop: Any, generating: Any, redis_store: RedisStore, calibration: bytes
) -> None:
    order = workshop.order("calibrated", calibration=workshop.stored(calibration))
    results = await build(workshop, generating, redis_store, order)
    assert results["ort-fp32-t1"].accuracy.rows == len(workshop.rows) - 30


async def test_a_graph_that_is_none_ends_the_build_with_the_reason(
    workshop: Any, generating: Any, redis_store: RedisStore
) -> None:
    order = workshop.order("broken", b"this is no graph")
    results = await build(workshop, generating, redis_store, order)
    assert results.keys() == {"*"}
    assert results["*"].outcome == "failed"
    assert "cannot be built" in results["*"].reason


async def test_an_artifact_that_is_gone_ends_the_build_with_the_reason(
    workshop: Any, generating: Any, redis_store: RedisStore
) -> None:
    order = workshop.order()
    workshop.repository.remove(order.artifact)
    results = await build(workshop, generating, redis_store, order)
    assert (results["*"].outcome, results.keys()) == ("failed", {"*"})
    assert "not in the repository" in results["*"].reason


async def test_a_graph_that_fails_when_it_runs_fails_every_recipe_and_the_build(
    workshop: Any, generating: Any, redis_store: RedisStore, exploding_graph: bytes
) -> None:
    order = workshop.order("exploding", exploding_graph)
    results = await build(workshop, generating, redis_store, order)
    assert results["ort-fp32-t1"].outcome == "failed"
    assert results["*"].outcome == "failed"
    assert "ort-fp32-t1" in results["*"].reason


async def test_two_generators_at_once_make_one_set_of_variants(
    workshop: Any, generating: Any, redis_url: str, redis_namespace: str
) -> None:
    one, other = RedisStore(redis_url, redis_namespace), RedisStore(redis_url, redis_namespace)
    orders = [workshop.order(name) for name in ("a", "b")]
    try:
        for order in orders:
            await one.put(Kind.BUILD, order.id, encode(order))
        async with generating(one), generating(other):
            for order in orders:
                results = await workshop.finished(one, order)
                assert results["*"].outcome == "made"
        records = (await one.list([Kind.RESULT])).records
        assert {record.version for record in records} == {1}  # each written exactly once
        assert not await one.holders()
    finally:
        await one.close()
        await other.close()


async def test_recipes_that_the_catalogue_has_are_not_built_again(
    workshop: Any, generating: Any, redis_store: RedisStore
) -> None:
    order = workshop.order(done=("ort-fp32-t1", "ort-fp32-t2", "ort-int8-t2"))
    results = await build(workshop, generating, redis_store, order)
    tried = {recipe for recipe, result in results.items() if result.outcome != "skipped"}
    assert tried - {"ort-fp32-t4", "ort-int8-t4"} == {"ort-int8-t1", "*"}
    assert "3 done before" in results["*"].reason


async def test_a_build_goes_on_behind_results_that_are_already_there(
    workshop: Any, generating: Any, redis_store: RedisStore
) -> None:
    order = workshop.order()
    first = await build(workshop, generating, redis_store, order)
    await redis_store.delete(Kind.RESULT, f"{order.id}/*")
    await redis_store.delete(Kind.RESULT, f"{order.id}/ort-int8-t1")
    second = await build(workshop, generating, redis_store, replace(order, attempts=1))
    assert second["ort-fp32-t1"] == first["ort-fp32-t1"]
    assert second["ort-int8-t1"].outcome == "made"
    assert second["ort-int8-t1"].variant.artifact == first["ort-int8-t1"].variant.artifact


async def test_a_withdrawn_order_is_not_built_to_the_end(
    workshop: Any, generating: Any, redis_store: RedisStore
) -> None:
    order = workshop.order(profile_budget_s=60.0)
    await redis_store.put(Kind.BUILD, order.id, encode(order))
    async with generating(redis_store):

        async def is_held() -> bool:
            return f"build/{order.id}" in await redis_store.holders()

        async def is_free() -> bool:
            return not await is_held()

        await workshop.until(is_held)
        await redis_store.delete(Kind.BUILD, order.id)
        await workshop.until(is_free)
        assert "*" not in await workshop.results_of(redis_store, order)


async def test_a_generator_that_lost_its_lease_writes_nothing_more(
    workshop: Any, generating: Any, redis_store: RedisStore
) -> None:
    order = workshop.order(profile_budget_s=60.0)
    await redis_store.put(Kind.BUILD, order.id, encode(order))
    async with generating(redis_store, lease_ttl_s=0.5) as generator:

        async def lease() -> Any:
            return await redis_store.acquire(f"build/{order.id}", generator.id, 0.5) if await is_held() else None

        async def is_held() -> bool:
            return f"build/{order.id}" in await redis_store.holders()

        await redis_store.release(await workshop.until(lease))

        async def usurped() -> Any:
            return await redis_store.acquire(f"build/{order.id}", "somebody else", 60.0)

        await workshop.until(usurped)
        before = await workshop.results_of(redis_store, order)

        async def has_stopped() -> bool:
            return generator._building is None

        await workshop.until(has_stopped)
        assert await workshop.results_of(redis_store, order) == before
