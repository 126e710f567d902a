"""Tells workers, each second, what the queries that they were sent would have taken instead, if they exchange variants.

A worker can only weigh what it is told of. Of many variants that would do, those are told that could be worth it: which
do most in a second, take least memory, or answer soonest.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from infaas.aio.every import every
from infaas.clock import Clock
from infaas.domain.cluster import ClusterView
from infaas.domain.ids import VariantName, WorkerId
from infaas.domain.query import Objective
from infaas.domain.variant import Profile, Variant, VariantState
from infaas.domain.wish import ALTERNATIVES, Wish, Wishes
from infaas.rpc.codec import encode
from infaas.rpc.v1 import worker_pb2 as pb
from infaas_controller.decide.candidates import accuracy_of
from infaas_controller.wants import Want, Wants

TELL_EVERY_S = 1.0
NAME_EVERY_S = 5.0
"""Variants whole; a worker believes in them for thirty seconds."""


def wishes_for(wants: Mapping[VariantName, Want], variants: Mapping[VariantName, Variant]) -> Wishes:
    """What one worker is told. `variants`: all that there are."""
    wishes: list[Wish] = []
    named: dict[VariantName, Variant] = {}
    for name, want in sorted(wants.items()):
        admitted = [variants[one] for one in want.admitted if one != name and one in variants]
        own = variants.get(name)
        others = alternatives([one for one in admitted if own is not None and is_as_good(one, own, want.objectives)])
        named |= {one.name: one for one in others}
        names = tuple(sorted(one.name for one in others))
        wishes.append(Wish(name, names, want.items, want.queries, want.latency_s))
    return Wishes(tuple(wishes), tuple(named[name] for name in sorted(named)))


def is_as_good(one: Variant, own: Variant, objectives: Collection[Objective]) -> bool:
    """Whether it would do for those who asked for the most accurate answer, or the soonest, and got `own`: what is
    saved is not worth less of that."""
    if Objective.ACCURACY in objectives and accuracy_of(one) < accuracy_of(own):
        return False
    return Objective.LATENCY not in objectives or one.run_s(1) <= own.run_s(1)


def alternatives(variants: Iterable[Variant]) -> Sequence[Variant]:
    """A third of those that are told is the best in each respect."""
    profiled = [
        (variant, variant.profile)
        for variant in variants
        if variant.profile is not None and variant.state is VariantState.READY and not variant.runtime.is_elsewhere
    ]
    respects: Sequence[Callable[[Profile], float]] = (
        lambda profile: -profile.throughput_per_s,
        lambda profile: profile.resident_memory_bytes,
        lambda profile: profile.latency_s(1),
    )
    found: dict[VariantName, Variant] = {}
    for respect in respects:
        best = sorted(profiled, key=lambda one: (respect(one[1]), one[0].name))
        found |= {variant.name: variant for variant, _ in best[: ALTERNATIVES // len(respects)]}
    return list(found.values())


class Wishing:
    """`run` is eternal."""

    def __init__(
        self,
        wants: Wants,
        view: Callable[[], ClusterView],
        asking: Callable[[], frozenset[WorkerId]],
        send: Callable[[WorkerId, pb.ControllerMessage], bool],
        clock: Clock,
    ) -> None:
        """`asking`: workers that exchange variants."""
        self._wants = wants
        self._view = view
        self._asking = asking
        self._send = send
        self._clock = clock
        self._named: dict[WorkerId, tuple[frozenset[VariantName], float]] = {}
        """Variants that a worker was told of whole, and when."""

    async def run(self) -> NoReturn:
        await every(TELL_EVERY_S, self.look, clock=self._clock, name="wishing")

    async def look(self) -> None:
        asking = self._asking()
        wants = self._wants.take()
        self._wants.is_on = bool(asking)
        variants = self._view().variants
        self._named = {worker: named for worker, named in self._named.items() if worker in asking}
        for worker in sorted(asking & set(wants)):
            told = self._without_what_was_named(worker, wishes_for(wants[worker], variants))
            self._send(worker, pb.ControllerMessage(wishes=pb.Wishes(wishes=encode(told))))
            await asyncio.sleep(0)  # there may be many of them, and queries between

    def _without_what_was_named(self, worker: WorkerId, wishes: Wishes) -> Wishes:
        """Variants are long, and the same each second: they are sent again when there are others, or after a while."""
        now, names = self._clock.now(), frozenset([variant.name for variant in wishes.variants])
        named, at = self._named.get(worker, (frozenset(), -math.inf))
        if names <= named and now - at < NAME_EVERY_S:
            return replace(wishes, variants=())
        self._named[worker] = names, now
        return wishes
