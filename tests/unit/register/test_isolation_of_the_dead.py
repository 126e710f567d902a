"""Which variants are given processes of their own."""

from __future__ import annotations

from infaas_controller.register.isolation import to_isolate

from infaas.domain.lifecycle import Death, InstanceState
from infaas.domain.variant import Isolation
from infaas.testing.builders import a_variant, a_view, a_worker, an_instance


def test_only_a_variant_whose_instance_died_and_that_shares_a_process_is_isolated_with_the_reason() -> None:
    variants = [a_variant("crashes"), a_variant("apart", isolation=Isolation.PROCESS), a_variant("fails")]
    dead = {"state": InstanceState.FAILED, "death": Death.CRASHED, "reason": "SIGFPE"}
    instances = [
        an_instance("i1", variant="crashes", **dead),
        an_instance("i2", variant="apart", **dead),
        an_instance("i3", variant="fails", state=InstanceState.FAILED, reason="no memory"),
        an_instance("i4", variant="gone", **dead),
    ]
    view = a_view(variants=variants, workers=[a_worker("w1", instances=instances)])
    assert to_isolate(view) == {"crashes": "instance i1 on w1 crashed: SIGFPE"}
