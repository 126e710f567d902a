"""The life of a registration: built, published, warmed, switched, retired; the generator's part is played."""

from __future__ import annotations

from dataclasses import replace

import pytest
from registrar_house import House, Register, serve

from infaas.domain.build import BuildOrder
from infaas.domain.lifecycle import InstanceState
from infaas.domain.task import ModelState, Task
from infaas.domain.variant import Variant
from infaas.errors import NotFoundError, PreconditionError, UnavailableError
from infaas.rpc.codec import decode
from infaas.store.base import Kind, Lease


async def test_a_registration_is_stored_written_and_ordered_to_be_built(house: House, register: Register) -> None:
    document = await register(labels={"team": "a"})
    assert (document.model, document.version, document.state) == ("net", 1, "RECEIVED")
    assert (document.is_new, document.created_task, document.location) == (True, True, "/v1/models/net/versions/1")
    await house.turn()
    order = decode(await house.record(Kind.BUILD, "net@1") or b"", BuildOrder)
    for digest in (order.artifact, order.original, order.evaluation):
        assert digest is not None
        assert house.repository.has(digest)
    assert decode(await house.record(Kind.TASK, "digits") or b"", Task).inputs[0].shape == (-1, 4)
    model = await house.model()
    assert model is not None
    assert (model.current, model.state, model.reason) == (None, ModelState.LOADING, "version 1 is being built")


async def test_variants_are_published_only_when_the_build_is_over(house: House, register: Register) -> None:
    await register()
    await house.turn()
    await house.build(1, "fp32", "int8")
    await house.store.delete(Kind.RESULT, "net@1/*")
    await house.turn()
    assert (await house.store.list((Kind.VARIANT,))).records == ()
    assert (await house.registrar.describe_version("net", 1)).state == "BUILDING"
    await house.build(1, "fp32", "int8")
    await house.turn()
    await house.turn()
    found = sorted(r.key for r in (await house.store.list((Kind.VARIANT,))).records)
    assert found == ["net.v1.fp32", "net.v1.int8"]
    leftovers = (await house.store.list((Kind.BUILD, Kind.PROGRESS, Kind.RESULT))).records
    assert leftovers == ()


async def test_the_first_version_serves_at_once_and_is_preloaded(house: House, register: Register) -> None:
    await serve(house, register)
    await house.turn()
    assert house.fleet.asked == ["net.v1.fp32"]


async def test_the_next_version_serves_only_when_it_is_warm(house: House, register: Register) -> None:
    await serve(house, register)
    await house.fleet.see(house.store, net__v1__fp32=InstanceState.READY)
    await house.registrar.step_results()
    await register(2.0)
    await house.turn()
    await house.build(2)
    await house.turn()
    await house.turn()
    model = await house.model()
    assert model is not None
    assert (model.current, model.reason) == (1, "version 2 is being warmed")
    assert house.fleet.asked[-1] == "net.v2.fp32"
    await house.fleet.see(house.store, net__v2__fp32=InstanceState.LOADING)
    await house.registrar.step_results()
    assert (await house.registrar.describe_model("net")).current == 1
    await house.fleet.see(house.store, net__v2__fp32=InstanceState.READY)
    await house.registrar.step_results()
    document = await house.registrar.describe_model("net")
    assert (document.current, document.serves) == (2, 1), "queries follow when the store says so"
    await house.registrar.step_refill()
    model = await house.model()
    assert model is not None
    assert model.current == 2
    await house.fleet.see(house.store)
    assert (await house.registrar.describe_model("net")).serves == 2


async def test_a_model_whose_variants_queries_do_not_know_yet_does_not_serve(house: House, register: Register) -> None:
    await serve(house, register)
    house.fleet.view = replace(house.fleet.view, variants={})
    document = await house.registrar.describe_model("net")
    assert (document.current, document.serves) == (1, None)


async def test_why_a_version_is_not_warm_is_said(house: House, register: Register) -> None:
    await serve(house, register)
    await register(2.0)
    await house.turn()
    await house.build(2)
    await house.turn()
    house.fleet.refusal = UnavailableError("no worker has 50 MiB free")
    for _ in range(3):
        await house.turn()
    document = await house.registrar.describe_model("net")
    assert document.current == 1
    assert "no worker has 50 MiB free" in document.reason


async def test_rollback_warms_the_older_version_and_switches(house: House, register: Register) -> None:
    await test_the_next_version_serves_only_when_it_is_warm(house, register)
    document = await house.registrar.rollback("net")
    assert (document.current, document.reason) == (2, "version 1 is being warmed")
    await house.fleet.see(house.store, net__v1__fp32=InstanceState.READY)
    await house.registrar.step_results()
    assert (await house.registrar.describe_model("net")).current == 1
    with pytest.raises(PreconditionError, match="no READY version before 1"):
        await house.registrar.rollback("net")
    with pytest.raises(NotFoundError):
        await house.registrar.rollback("net", 7)


async def test_a_failed_build_says_why_and_the_same_file_is_tried_again(house: House, register: Register) -> None:
    await register()
    await house.turn()
    await house.build(1, outcome="failed")
    house.registrar._note_news()
    await house.registrar.step_results()
    document = await house.registrar.describe_version("net", 1)
    assert (document.state, document.reason) == ("FAILED", "every recipe failed")
    again = await register()
    assert (again.version, again.state, again.is_new) == (1, "RECEIVED", True)
    await house.turn()
    assert (await house.registrar.describe_version("net", 1)).state == "RECEIVED", "old results must not end it again"
    assert await house.record(Kind.BUILD, "net@1") is not None


async def test_clearing_leftovers_touches_no_build_that_began_meanwhile(house: House, register: Register) -> None:
    await register()
    await house.turn()
    await house.build(1, outcome="failed")
    house.registrar._note_news()
    await house.registrar.step_results()
    failed = house.catalog.version("net", 1)
    assert failed is not None
    await register()
    await house.turn()
    await house.build(1)
    before = (await house.store.list(tuple(Kind))).records
    assert any(record.kind is Kind.RESULT for record in before)
    # A second caller saw the version while it was FAILED, and comes late.
    await house.registrar._builds.clear(failed)
    assert (await house.store.list(tuple(Kind))).records == before


async def test_clearing_leftovers_spares_what_was_written_since_it_looked(
    house: House, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register()
    await house.turn()
    await house.build(1, outcome="failed")
    house.registrar._note_news()
    await house.registrar.step_results()
    failed = house.catalog.version("net", 1)
    assert failed is not None
    listed = await house.store.list((Kind.BUILD, Kind.PROGRESS, Kind.RESULT))
    await house.store.put(Kind.RESULT, "net@1/fp32", b"{}")

    async def earlier(_: object) -> object:
        return listed

    monkeypatch.setattr(house.store, "list", earlier)
    await house.registrar._builds.clear(failed)
    monkeypatch.undo()
    assert await house.record(Kind.RESULT, "net@1/fp32") == b"{}"
    assert await house.record(Kind.RESULT, "net@1/*") is None


async def test_unregistering_leaves_the_view_then_drains_and_the_file_revives_it(
    house: House, register: Register
) -> None:
    await serve(house, register)
    await house.registrar.unregister("net")
    await house.registrar.step_refill()
    assert (await house.store.list((Kind.MODEL, Kind.VARIANT))).records == ()
    await house.fleet.see(house.store, net__v1__fp32=InstanceState.READY)
    await house.registrar.step_refill()
    assert house.fleet.unloaded == ["net.v1.fp32"]
    assert await house.registrar.list_models() == []
    assert (await house.registrar.describe_model("net")).reason == "unregistered"
    again = await register()
    assert (again.version, again.state, again.is_new) == (1, "READY", True)
    for _ in range(3):
        await house.turn()
    model = await house.model()
    assert model is not None
    assert model.current == 1
    assert await house.record(Kind.VARIANT, "net.v1.fp32") is not None


async def test_what_was_unregistered_in_the_middle_of_its_build_is_built_to_its_end_when_it_comes_back(
    house: House, register: Register
) -> None:
    await register()
    await house.turn()
    await house.build(1, "fp32")
    await house.store.delete(Kind.RESULT, "net@1/*")
    await house.turn()
    assert (await house.registrar.describe_version("net", 1)).variants == ("net.v1.fp32",)
    await house.registrar.unregister("net")
    await house.turn()
    assert await house.record(Kind.BUILD, "net@1") is None
    again = await register()
    assert (again.version, again.state) == (1, "RECEIVED")
    await house.turn()
    assert decode(await house.record(Kind.BUILD, "net@1") or b"", BuildOrder).done == ("fp32",)
    await house.build(1, "int8")
    for _ in range(3):
        await house.turn()
    assert (await house.registrar.describe_version("net", 1)).variants == ("net.v1.fp32", "net.v1.int8")
    model = await house.model()
    assert model is not None
    assert model.current == 1


async def test_a_disabled_variant_is_published_as_such_and_drains(house: House, register: Register) -> None:
    await serve(house, register)
    document = await house.registrar.disable_variant("net.v1.fp32", "too slow")
    assert (document.state, document.reason) == ("DISABLED", "too slow")
    await house.fleet.see(house.store, net__v1__fp32=InstanceState.READY)
    await house.registrar.step_refill()
    assert house.fleet.unloaded == ["net.v1.fp32"]
    assert decode(await house.record(Kind.VARIANT, "net.v1.fp32") or b"", Variant).state == "DISABLED"
    await house.registrar.enable_variant("net.v1.fp32")
    await house.registrar.step_refill()
    assert decode(await house.record(Kind.VARIANT, "net.v1.fp32") or b"", Variant).state == "READY"


async def test_an_emptied_store_is_filled_again_with_what_was_done(house: House, register: Register) -> None:
    await serve(house, register)
    await register(2.0)
    await house.turn()
    await house.build(2, "fp32")
    await house.store.delete(Kind.RESULT, "net@2/*")
    await house.turn()
    for record in (await house.store.list(tuple(Kind))).records:
        await house.store.delete(record.kind, record.key)
    house.registrar._refill._compare_at = 0.0
    await house.registrar.step_refill()
    order = decode(await house.record(Kind.BUILD, "net@2") or b"", BuildOrder)
    assert order.done == ("fp32",)
    keys = {(r.kind, r.key) for r in (await house.store.list((Kind.TASK, Kind.MODEL, Kind.VARIANT))).records}
    assert keys == {(Kind.TASK, "digits"), (Kind.MODEL, "net"), (Kind.VARIANT, "net.v1.fp32")}


async def test_a_deposed_leader_writes_nothing(house: House, register: Register) -> None:
    lease = await house.store.acquire("leader", "old", 30.0)
    assert lease is not None
    house.registrar._lease = lambda: replace(lease, fence=lease.fence - 1)
    await register()
    with pytest.raises(PreconditionError):
        await house.registrar.step_refill()
    assert (await house.store.list((Kind.TASK, Kind.BUILD))).records == ()
    house.registrar._lease = lambda: None
    await house.registrar.step_refill()
    assert (await house.store.list((Kind.TASK, Kind.BUILD))).records == ()
    held: Lease = lease
    house.registrar._lease = lambda: held
    await house.registrar.step_refill()
    assert await house.record(Kind.BUILD, "net@1") is not None


async def test_a_leadership_that_is_lost_in_the_middle_of_a_step_writes_nothing(
    house: House, register: Register
) -> None:
    """The lease was valid when the step began; by the time of its writes, somebody else has it."""
    await register()
    lease = await house.store.acquire("controller", "deposed", 60.0)
    assert lease is not None
    held: list[Lease] = [lease]
    house.registrar._lease = lambda: held.pop() if held else None
    await house.store.release(lease)
    assert await house.store.acquire("controller", "next", 60.0) is not None
    with pytest.raises(PreconditionError):
        await house.registrar.step_refill()
    assert (await house.store.list((Kind.TASK, Kind.BUILD))).records == ()
