"""Rules of who counts as alive: how long silence is borne, how often a lost worker is dialled, when we are ready."""

from __future__ import annotations

from infaas.domain.cluster import ClusterView
from infaas_controller.ledger import Ledger

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0


def redial_pause_s(failures: int, draw: float) -> float:
    """Before the next attempt to reach a worker: doubling, bounded, jittered so that many controllers do not all come
    at once. `draw` is uniform in [0, 1)."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures, 16)) * (0.5 + 0.5 * draw)


def can_serve(is_view_synced: bool, view: ClusterView, ledger: Ledger) -> bool:
    """Ready: the view is there and, if any variant is published, a READY worker has a stream. A system in which
    nothing is registered is ready (SURFACE rule 9)."""
    if not is_view_synced:
        return False
    return not view.variants or any(True for _ in ledger.ready_decks())
