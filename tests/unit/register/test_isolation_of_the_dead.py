"""Which variants are given processes of their own."""

from __future__ import annotations

from dataclasses import replace

from infaas_controller.register.isolation import known_deaths, to_isolate

from infaas.domain.ids import InstanceId
from infaas.domain.lifecycle import Death, InstanceState
from infaas.domain.variant import Isolation, Runtime
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
    assert to_isolate(view, variants) == {"crashes": ("i1", "instance i1 on w1 crashed: SIGFPE")}


def test_what_runs_on_a_server_shares_no_process_that_it_could_be_taken_out_of() -> None:
    attached = a_variant("attached", runtime=Runtime.TRITON)
    hung = an_instance("i1", variant="attached", state=InstanceState.FAILED, death=Death.HUNG, reason="hung for 60 s")
    view = a_view(variants=[attached], workers=[a_worker("w1", instances=[hung])])
    assert to_isolate(view, [attached]) == {}


def test_deaths_that_were_known_when_somebody_had_it_share_a_process_do_not_count_and_later_ones_do() -> None:
    dead = {"variant": "v", "state": InstanceState.FAILED, "death": Death.CRASHED, "reason": "SIGFPE"}
    old, failed = an_instance("i1", **dead), an_instance("i2", variant="v", state=InstanceState.FAILED)
    variant = a_variant("v")
    before = a_view(variants=[variant], workers=[a_worker("w1", instances=[old, failed])])
    assert known_deaths(before, "v") == (InstanceId("i1"),)
    assert known_deaths(before, "other") == ()
    pardoned = replace(variant, pardoned=known_deaths(before, "v"))
    view = a_view(variants=[pardoned], workers=[a_worker("w1", instances=[old, failed])])
    assert to_isolate(view, [pardoned]) == {}
    again = an_instance("i3", **dead)
    view = a_view(variants=[pardoned], workers=[a_worker("w1", instances=[old, failed, again])])
    assert to_isolate(view, [pardoned]) == {"v": ("i3", "instance i3 on w1 crashed: SIGFPE")}
