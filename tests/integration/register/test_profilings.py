"""Measuring a variant anew: from the order to the published profile, whatever dies on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from registrar_house import House, Register, serve

from infaas.domain.build import BuildOrder, BuildProgress, BuildResult, ProfilingState
from infaas.domain.variant import Profile, Variant
from infaas.errors import ConflictError, InvalidError, NotFoundError, PreconditionError
from infaas.rpc.codec import decode, encode
from infaas.store.base import Kind

VARIANT = "net.v1.fp32"


async def the_order(house: House, number: int = 1) -> BuildOrder | None:
    value = await house.record(Kind.BUILD, f"profile/{number}")
    return None if value is None else decode(value, BuildOrder)


async def published(house: House) -> Variant:
    value = await house.record(Kind.VARIANT, VARIANT)
    assert value is not None
    return decode(value, Variant)


async def measured(house: House, **change: Any) -> Profile:
    """What a generator leaves in the store for profiling 1."""
    order = await the_order(house)
    assert order is not None
    assert order.remeasure is not None
    assert order.remeasure.profile is not None
    profile = replace(order.remeasure.profile, throughput_per_s=4711.0, **change)
    await house.store.put(Kind.PROGRESS, f"{order.id}/fp32", encode(BuildProgress(order.id, "fp32", "profiling", 0.5)))
    done = BuildResult(order.id, "*", replace(order.remeasure, profile=profile), "made", "")
    await house.store.put(Kind.RESULT, f"{order.id}/*", encode(done), expect=0)
    return profile


async def test_a_profiling_is_published_measured_and_republished(house: House, register: Register) -> None:
    await serve(house, register)
    before = (await published(house)).profile
    ordered = await house.registrar.profile_variant(VARIANT, 2.5)
    assert (ordered.state, ordered.location) == (ProfilingState.PENDING, f"/v1/variants/{VARIANT}/profilings/1")
    await house.turn()
    order = await the_order(house)
    assert order is not None
    assert (order.profile_budget_s, order.remeasure) == (2.5, await published(house))
    assert order.evaluation is not None
    profile = await measured(house)
    await house.turn()
    assert (await published(house)).profile == profile
    done = await house.registrar.profilings.document(VARIANT, 1)
    assert (done.state, done.holder) == (ProfilingState.SUCCEEDED, None)
    assert list(await house.registrar.profilings.profiles(VARIANT)) == [profile, before]
    await house.turn()
    left = (await house.store.list((Kind.BUILD, Kind.PROGRESS, Kind.RESULT))).records
    assert [record.key for record in left if record.key.startswith("profile/")] == [], "nothing is left behind"
    model = await house.model()
    assert model is not None
    assert model.current == 1


async def test_progress_is_shown_while_it_is_measured(house: House, register: Register) -> None:
    await serve(house, register)
    await house.registrar.profile_variant(VARIANT)
    await house.turn()
    order = await the_order(house)
    assert order is not None
    lease = await house.store.acquire(f"build/{order.id}", "g-1", 5.0)
    assert lease is not None
    await house.store.put(Kind.PROGRESS, f"{order.id}/fp32", encode(BuildProgress(order.id, "fp32", "profiling", 0.5)))
    await house.turn()
    seen = await house.registrar.profilings.document(VARIANT, 1)
    assert seen.progress is not None
    assert (seen.state, seen.holder, seen.progress.fraction) == (ProfilingState.RUNNING, "g-1", 0.5)
    watching = house.registrar.profilings.watch(VARIANT, 1)
    assert await anext(watching) == seen
    await measured(house)
    await house.turn()
    states = [document.state async for document in watching if document is not None]
    assert states[-1] == ProfilingState.SUCCEEDED


async def test_an_emptied_store_gets_the_order_again(house: House, register: Register) -> None:
    await serve(house, register)
    await house.registrar.profile_variant(VARIANT)
    await house.turn()
    before = await the_order(house)
    for record in (await house.store.list(tuple(Kind))).records:
        await house.store.delete(record.kind, record.key)
    house.again()
    await house.turn()
    assert await the_order(house) == before


async def test_a_failed_measurement_changes_nothing_but_says_why(house: House, register: Register) -> None:
    await serve(house, register)
    before = await published(house)
    await house.registrar.profile_variant(VARIANT)
    await house.turn()
    order = await the_order(house)
    assert order is not None
    failed = BuildResult(order.id, "*", None, "failed", "measure process was killed by signal 9")
    await house.store.put(Kind.RESULT, f"{order.id}/*", encode(failed))
    await house.turn()
    seen = await house.registrar.profilings.document(VARIANT, 1)
    assert (seen.state, seen.reason) == (ProfilingState.FAILED, failed.reason)
    assert await published(house) == before


async def test_unregistering_withdraws_the_order(house: House, register: Register) -> None:
    await serve(house, register)
    await house.registrar.profile_variant(VARIANT)
    await house.turn()
    await measured(house)
    await house.registrar.unregister("net")
    await house.turn()
    assert await the_order(house) is None
    seen = await house.registrar.profilings.document(VARIANT, 1)
    assert seen.state == ProfilingState.CANCELLED
    assert len(await house.registrar.profilings.profiles(VARIANT)) == 1, "what came too late is not taken"


async def test_what_cannot_be_measured_is_refused_in_words(house: House, register: Register) -> None:
    await serve(house, register)
    with pytest.raises(NotFoundError, match="no variant 'nobody'"):
        await house.registrar.profile_variant("nobody")
    with pytest.raises(InvalidError, match="budget of -1 s"):
        await house.registrar.profile_variant(VARIANT, -1.0)
    with pytest.raises(NotFoundError, match="has no profiling 7"):
        await house.registrar.profilings.document(VARIANT, 7)
    await house.registrar.profile_variant(VARIANT, 1.0, idempotency_key="k")
    assert (await house.registrar.profile_variant(VARIANT, 1.0, idempotency_key="k")).id == 1
    with pytest.raises(ConflictError, match="Idempotency-Key"):
        await house.registrar.profile_variant(VARIANT, 2.0, idempotency_key="k")
    await house.registrar.unregister("net")
    with pytest.raises(PreconditionError, match="retired"):
        await house.registrar.profile_variant(VARIANT)
