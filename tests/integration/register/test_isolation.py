"""Where instances run: what the registrar decides after a death, and what somebody decides against it."""

from __future__ import annotations

from dataclasses import replace

from registrar_house import House, Register, serve

from infaas.domain.ids import VariantName, WorkerId
from infaas.domain.lifecycle import Death, InstanceState
from infaas.domain.variant import Isolation
from infaas.testing.builders import a_variant, a_worker, an_instance

NAME = VariantName("net.v1.fp32")


def isolation(house: House) -> Isolation:
    found = house.catalog.variant(NAME)
    assert found is not None
    return found.isolation


async def see_dead(house: House, *instances: str, variant: str = NAME) -> None:
    """The view follows the store, and a worker says that these instances died."""
    await house.fleet.see(house.store)
    dead = [
        an_instance(one, variant=variant, state=InstanceState.FAILED, death=Death.CRASHED, reason="SIGFPE")
        for one in instances
    ]
    house.fleet.view = replace(house.fleet.view, workers={WorkerId("w1"): a_worker("w1", instances=dead)})


async def look(house: House, *instances: str) -> None:
    """A few turns, as many as a worker goes on reporting its dead for."""
    for _ in range(3):
        await see_dead(house, *instances)
        await house.registrar.step_results()
        await house.registrar.step_refill()


async def test_what_somebody_asked_for_stays_while_the_old_death_is_still_reported(
    house: House, register: Register
) -> None:
    await serve(house, register)
    await look(house, "i1")
    assert isolation(house) is Isolation.PROCESS
    document = await house.registrar.isolate_variant(NAME, "thread", actor="me")
    assert document.isolation == "thread"
    await look(house, "i1")
    assert isolation(house) is Isolation.THREAD
    await look(house, "i1", "i2")
    assert isolation(house) is Isolation.PROCESS, "it died again"


async def test_a_variant_that_the_catalogue_does_not_know_keeps_no_other_from_being_looked_at(
    house: House, register: Register
) -> None:
    """The view may be ahead of a catalogue that was restored from a backup."""
    await serve(house, register)
    await see_dead(house, "i1", variant="a.gone")
    gone = a_variant("a.gone", model="net", version=7)
    dead = an_instance("i2", variant=NAME, state=InstanceState.FAILED, death=Death.CRASHED, reason="SIGFPE")
    workers = {
        **house.fleet.view.workers,
        WorkerId("w2"): a_worker("w2", instances=[replace(dead, worker=WorkerId("w2"))]),
    }
    house.fleet.view = replace(
        house.fleet.view, variants={**house.fleet.view.variants, gone.name: gone}, workers=workers
    )
    await house.registrar.step_results()
    assert isolation(house) is Isolation.PROCESS
