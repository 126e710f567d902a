"""A variant measured anew by a real generator, on the bytes that its build left."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from infaas_variant_generator.main import Generator

from infaas.domain.build import BuildResult, profiling_build
from infaas.rpc.codec import encode
from infaas.store.base import Kind
from infaas.store.redis import RedisStore
from infaas.testing.builders import a_digest
from infaas.tokens import Tokens

pytestmark = pytest.mark.long


async def work_on(workshop: Any, store: RedisStore, order: Any) -> dict[str, BuildResult]:
    """All results of an order, by a generator that runs until they are there."""
    await store.put(Kind.BUILD, order.id, encode(order))
    generator = Generator(
        store, workshop.repository, workshop.settings(), tokens=Tokens.of(None), host="nowhere", cores=frozenset({0, 1})
    )
    task = asyncio.create_task(generator.run(), name="generator under test")
    try:
        found: dict[str, BuildResult] = await workshop.finished(store, order)
        return found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_variant_is_measured_anew_with_samples_of_its_own(workshop: Any, redis_store: RedisStore) -> None:
    built = (await work_on(workshop, redis_store, workshop.order()))["ort-fp32-t1"].variant
    assert built is not None
    assert built.profile is not None
    order = replace(workshop.order(), id=profiling_build(1), remeasure=built, profile_budget_s=0.1)
    results = await work_on(workshop, redis_store, order)
    assert results.keys() == {"*"}, "one result, and no variant is made"
    result = results["*"]
    assert result.outcome == "made", result.reason
    assert result.variant is not None
    fresh = result.variant.profile
    assert fresh is not None
    assert replace(result.variant, profile=built.profile) == built, "only the profile is another"
    assert fresh.accuracy == built.profile.accuracy
    assert [point.batch for point in fresh.latency] == [1, 2, 4]
    assert fresh.budget_s == 0.1
    assert fresh.samples not in (None, built.profile.samples)
    with np.load(workshop.repository.fetch(fresh.samples)) as samples:
        assert len(samples["seconds"]) > 0
    progress = [r.key for r in (await redis_store.list((Kind.PROGRESS,))).records]
    assert f"{order.id}/ort-fp32-t1" in progress


async def test_two_threads_are_measured_even_where_they_gain_nothing(workshop: Any, redis_store: RedisStore) -> None:
    one = (await work_on(workshop, redis_store, workshop.order()))["ort-fp32-t1"].variant
    assert one is not None
    two = replace(one, threads=2, recipe="ort-fp32-t2")
    order = replace(workshop.order(), id=profiling_build(2), remeasure=two, profile_budget_s=0.1)
    result = (await work_on(workshop, redis_store, order))["*"]
    assert result.outcome == "made", result.reason


async def test_a_variant_whose_bytes_are_lost_fails_with_the_reason(workshop: Any, redis_store: RedisStore) -> None:
    one = (await work_on(workshop, redis_store, workshop.order()))["ort-fp32-t1"].variant
    assert one is not None
    order = replace(workshop.order(), id=profiling_build(3), remeasure=replace(one, artifact=a_digest("lost")))
    result = (await work_on(workshop, redis_store, order))["*"]
    assert (result.outcome, result.variant) == ("failed", None)
    assert "is not in the repository" in result.reason
