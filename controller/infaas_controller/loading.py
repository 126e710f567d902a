"""Loading because somebody asks for it: where a variant would go, and how long what was ordered took to be READY."""

from __future__ import annotations

from infaas.domain.ids import InstanceId, VariantName, WorkerId
from infaas.domain.variant import Variant
from infaas.errors import NotFoundError, UnavailableError
from infaas_controller.ledger import Ledger


def loaded_on(ledger: Ledger, variant: Variant, worker: WorkerId | None) -> WorkerId | None:
    """The worker that has a variant already or is loading it: the given one, else any. None: it must be loaded, also
    where the only instance was told to unload.

    Raises NotFoundError for an unknown worker.
    """
    if worker is not None and worker not in ledger.decks:
        raise NotFoundError(f"no worker is called {worker!r}; known: {', '.join(sorted(ledger.decks)) or 'none'}")
    there = [lane.worker.id for lane in ledger.lanes_of(variant.name) if lane.is_usable and not lane.is_leaving]
    return (worker or min(there)) if worker in there or (worker is None and there) else None


def place_to_load(ledger: Ledger, variant: Variant, worker: WorkerId | None, now: float) -> WorkerId:
    """The worker, known to the ledger, that takes another instance of a variant: the given one, else the best.

    Raises UnavailableError when none can.
    """
    deck = ledger.decks[worker] if worker is not None else ledger.place_for(variant, now, insists=True)
    if deck is None or not deck.is_ready or not ledger.could_hold(deck, variant):
        place = f"worker {worker}" if worker is not None else "no READY worker"
        text = f"{place} cannot take {variant.name} now ({variant.memory_bytes} bytes, {variant.threads} thread(s))"
        raise UnavailableError(text, retry_after_s=1.0)
    return deck.id


class LoadOrders:
    """What was ordered from here and is not READY yet, and when it was ordered."""

    def __init__(self) -> None:
        self._open: dict[InstanceId, tuple[VariantName, float]] = {}

    def sent(self, instance: InstanceId, variant: VariantName, now: float) -> None:
        self._open[instance] = variant, now

    def take_loaded(self, ledger: Ledger, now: float) -> list[tuple[VariantName, float]]:
        """What has become READY since the last call and how long that took; what is gone is forgotten."""
        loaded = []
        for instance, (variant, ordered_at) in list(self._open.items()):
            lane = ledger.lanes.get(instance)
            if lane is not None and not lane.is_ready and lane.is_usable:
                continue
            del self._open[instance]
            if lane is not None and lane.is_ready:
                loaded.append((variant, now - ordered_at))
        return loaded
