"""Keeps every variant that serves on as many workers as `controller.min_replicas` asks for, so that losing one of them
costs nobody a cold start.

Demand alone loads a variant once and then has no reason to load it a second time while one instance keeps up. Spares
are taken only into memory that nothing holds: they never push out what was loaded for a query, and two variants never
push each other's spares around. What does push them out is demand. The leader does it, so that controllers do not
each load one; without a leader (the store is lost) nothing is loaded ahead of demand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn

from infaas.aio.every import every
from infaas.clock import Clock
from infaas.domain.cluster import ClusterView
from infaas.domain.ids import VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState
from infaas.domain.variant import Variant, VariantState
from infaas.errors import InfaasError
from infaas.observe.log import get_logger
from infaas.store.base import Lease
from infaas_controller.lanes import Deck, Lane
from infaas_controller.ledger import Ledger

LOOK_EVERY_S = 1.0
_log = get_logger(__name__)


def missing_spares(
    ledger: Ledger, variants: Mapping[VariantName, Variant], wanted: int, now: float
) -> list[tuple[VariantName, WorkerId]]:
    """What to load where, by name; at most one load per worker at once, for each takes cores from the queries there.

    A variant without a READY instance gets none: what nobody asks for is not kept warm. Nor does one of which an
    instance drains or was told to: it may be that all of them were, and have not said so yet. Of the workers with room
    the one that holds least is taken, then the first by name.
    """
    found: list[tuple[VariantName, WorkerId]] = []
    held = {deck.id: deck.set_aside_bytes() for deck in ledger.ready_decks() if not _is_loading(deck)}
    for name in sorted(variants):
        variant = variants[name]
        lanes = [lane for lane in ledger.lanes_of(name) if lane.is_usable]
        if variant.state is not VariantState.READY or not any(lane.is_ready for lane in lanes):
            continue
        if any(_is_going(lane) for lane in ledger.lanes_of(name)):
            continue
        there = {lane.worker.id for lane in lanes}
        for _ in range(wanted - len(there)):
            fitting = [id for id in held if id not in there and _fits(ledger, variant, id, held[id], now)]
            if not fitting:
                break
            place = min(fitting, key=lambda id: (held[id], id))
            found.append((name, place))
            there.add(place)
            del held[place]
    return found


def _fits(ledger: Ledger, variant: Variant, worker: WorkerId, held_bytes: int, now: float) -> bool:
    record = ledger.decks[worker].record
    return (
        variant.threads <= record.cores
        and held_bytes + variant.memory_bytes <= record.memory_bytes
        and ledger.failed_load(variant.name, worker, now) is None
        and not ledger.is_given_up(variant.name, worker)
    )


def _is_going(lane: Lane) -> bool:
    return lane.is_leaving or (lane.instance_state is InstanceState.DRAINING and lane.worker.is_ready)


def _is_loading(deck: Deck) -> bool:
    return any(lane.is_usable and not lane.is_ready for lane in deck.lanes.values())


class Spares:
    """`run` is eternal and works while this controller leads."""

    def __init__(
        self,
        ledger: Ledger,
        view: Callable[[], ClusterView],
        load: Callable[[VariantName, WorkerId], object],
        wanted: int,
        clock: Clock,
        lease: Callable[[], Lease | None],
    ) -> None:
        """`load` raises InfaasError when it cannot."""
        self._ledger = ledger
        self._view = view
        self._load = load
        self._wanted = wanted
        self._clock = clock
        self._lease = lease

    async def run(self) -> NoReturn:
        await every(LOOK_EVERY_S, self.look, clock=self._clock, name="spares")

    async def look(self) -> None:
        if self._wanted < 2 or self._lease() is None:
            return
        for variant, worker in missing_spares(self._ledger, self._view().variants, self._wanted, self._clock.now()):
            try:
                self._load(variant, worker)
            except InfaasError as error:
                _log.warning("a spare was not loaded", variant=variant, worker=worker, reason=error.text)
            else:
                _log.info("a spare is loaded", variant=variant, worker=worker, wanted=self._wanted)
