"""The VM autoscaler of one controller, put together from its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from infaas.clock import Clock
from infaas.domain.cluster import ClusterView
from infaas.domain.ids import ControllerId
from infaas.observe.metrics import Metrics
from infaas.settings import Settings
from infaas.store.base import Lease
from infaas_controller.dispatch import Dispatcher
from infaas_controller.fleet.autoscaler import FleetAutoscaler, FleetParts
from infaas_controller.fleet.documents import NO_PROVIDER
from infaas_controller.fleet.ledger import FleetLedger
from infaas_controller.fleet.sources import OwnDemand, WorkersWork
from infaas_controller.providers.base import Provider
from infaas_controller.providers.docker import DockerProvider
from infaas_controller.providers.local import LocalProvider
from infaas_controller.workers import WorkerLinks

PROVIDERS: Mapping[str, Callable[[Settings], Provider]] = {"local": LocalProvider, "docker": DockerProvider}
"""By the words of `fleet.provider`."""


def fleet_autoscaler(
    settings: Settings,
    clock: Clock,
    controller: ControllerId,
    ledger: FleetLedger,
    dispatcher: Dispatcher,
    links: WorkerLinks,
    metrics: Metrics,
    lease: Callable[[], Lease | None],
) -> FleetAutoscaler | None:
    """None: there is no provider."""
    if settings.fleet.provider == NO_PROVIDER:
        return None

    def view() -> ClusterView:
        return dispatcher.view

    parts = FleetParts(
        controller=controller,
        provider=PROVIDERS[settings.fleet.provider](settings),
        ledger=ledger,
        demand=OwnDemand(metrics.own_requests, dispatcher.stats, dispatcher.queue_sizes, view, clock),
        work=WorkersWork(links.reports, links.scalings.busy, view, clock),
        drains=links,
        observer=metrics,
        view=view,
        lease=lease,
        clock=clock,
    )
    return FleetAutoscaler(settings, parts)
