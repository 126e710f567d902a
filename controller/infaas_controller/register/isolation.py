"""Which variants must have processes of their own from now on, by what their instances have done (SURFACE rule 15).

Pure and level-triggered: a dead instance stays in its worker's report for a while, and whoever leads looks at the whole
view each time, so that no message can be missed. What a variant is told to be is the catalogue's to say: the view
follows it with a delay, in which somebody's word would be undone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from infaas.domain.cluster import ClusterView
from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.variant import Isolation, Variant


class Cause(NamedTuple):
    """The death that isolates a variant."""

    instance: InstanceId
    reason: str


def to_isolate(view: ClusterView, registered: Iterable[Variant]) -> dict[VariantName, Cause]:
    """Variants that still share their worker's process though an instance of theirs has crashed or hung, and why they
    no longer should. Deaths that were known when somebody had them share it do not count, and what runs on a server
    shares nothing."""
    variants = {
        variant.name: variant
        for variant in registered
        if variant.isolation is not Isolation.PROCESS and not variant.runtime.is_elsewhere
    }
    found: dict[VariantName, Cause] = {}
    for worker in sorted(view.workers.values(), key=lambda each: each.id):
        for instance in sorted(worker.instances.values(), key=lambda each: each.id):
            variant = variants.get(instance.variant)
            if instance.death is None or variant is None or instance.id in variant.pardoned:
                continue
            why = f"instance {instance.id} on {worker.id} {instance.death.value}: {instance.reason}"
            found.setdefault(variant.name, Cause(instance.id, why))
    return found


def known_deaths(view: ClusterView, variant: str) -> tuple[InstanceId, ...]:
    """A variant's instances that ended as `to_isolate` counts."""
    return tuple(
        sorted(
            instance.id
            for worker in view.workers.values()
            for instance in worker.instances.values()
            if instance.variant == variant and instance.death is not None
        )
    )
