"""Which variants must have processes of their own from now on, by what their instances have done (SURFACE rule 15).

Pure and level-triggered: a dead instance stays in its worker's report for a while, and whoever leads looks at the whole
view each time, so that no message can be missed.
"""

from __future__ import annotations

from infaas.domain.cluster import ClusterView
from infaas.domain.ids import VariantName
from infaas.domain.variant import Isolation


def to_isolate(view: ClusterView) -> dict[VariantName, str]:
    """Variants that still share their worker's process though an instance of theirs has crashed or hung, and why they
    no longer should."""
    found: dict[VariantName, str] = {}
    for worker in sorted(view.workers.values(), key=lambda each: each.id):
        for instance in sorted(worker.instances.values(), key=lambda each: each.id):
            variant = view.variants.get(instance.variant)
            if instance.death is None or variant is None or variant.isolation is Isolation.PROCESS:
                continue
            why = f"instance {instance.id} on {worker.id} {instance.death.value}: {instance.reason}"
            found.setdefault(variant.name, why)
    return found
