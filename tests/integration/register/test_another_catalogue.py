"""A database that is not where it was is made anew, and empty: what the store has of the old one must not go for it."""

from __future__ import annotations

from pathlib import Path

from registrar_house import House, Register, serve

from infaas.catalog.catalog import Catalog
from infaas.store.base import Kind, Record

SERVED = (Kind.TASK, Kind.MODEL, Kind.VARIANT)


async def served(house: House) -> list[Record]:
    return list((await house.store.list(SERVED)).records)


def move_to(house: House, catalog: Catalog) -> None:
    """The registrar starts again, with another database."""
    house.catalog = catalog
    house.again()


async def test_an_empty_catalogue_takes_nothing_from_a_store_that_another_one_filled(
    house: House, register: Register, tmp_path: Path
) -> None:
    await serve(house, register)
    before, known = await served(house), house.catalog
    other = Catalog.open(f"sqlite:///{tmp_path}/other.db")
    try:
        move_to(house, other)
        await house.turn()
        assert await served(house) == before
        said = other.health.refusal
        assert said is not None
        assert f"this catalogue ({other.identity()}) holds no model" in said
        assert f"1 of another one ({known.identity()})" in said
        move_to(house, known)
        await house.turn()
        assert await served(house) == before
        assert known.health.refusal is None
    finally:
        other.close()


async def test_a_model_that_is_registered_there_makes_the_store_follow_the_other_catalogue(
    house: House, register: Register, tmp_path: Path
) -> None:
    await serve(house, register)
    known = house.catalog
    other = Catalog.open(f"sqlite:///{tmp_path}/other.db")
    try:
        move_to(house, other)
        await house.turn()
        await register(3.0, name="another")
        await house.turn()
        assert other.health.refusal is None
        models = [record.key for record in (await house.store.list((Kind.MODEL,))).records]
        assert models == ["another"]
        move_to(house, known)
        await house.turn()
        assert [record.key for record in (await house.store.list((Kind.MODEL,))).records] == ["net"]
    finally:
        other.close()


async def test_a_model_that_was_unregistered_goes_from_the_store_of_the_same_catalogue(
    house: House, register: Register
) -> None:
    await serve(house, register)
    await house.registrar.unregister("net", actor="me")
    await house.turn()
    assert [record.kind for record in await served(house)] == [Kind.TASK]


async def test_whoever_does_not_lead_says_nothing_of_it(house: House, register: Register) -> None:
    await serve(house, register)
    house.catalog.health.refusal = "from when it led"
    house.registrar._lease = lambda: None
    await house.registrar.step_refill()
    assert house.catalog.health.refusal is None
