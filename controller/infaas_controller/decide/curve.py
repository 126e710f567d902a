"""What selection and batching need of a profile, laid out for the query path: latency by batch size as plain lists.

A curve also says how large a batch pays: where throughput stops growing, a larger batch only makes its first query wait
for its last.
"""

from __future__ import annotations

from itertools import accumulate

from infaas.domain.variant import Variant

PAYS = 0.85
"""A batch is to have at least this share of the best throughput (items per second): what a larger one gains is not
worth making its first query wait for its last."""
PAYS_UNSEEN, UNSEEN_S = 0.97, 0.010
"""Where the run takes no longer than this, nobody sees that wait, and nearly all of the best is had; measured curves
waver by the rest."""
PAYS_DEEP, DEEPER_S = 0.99, 0.020
"""Where so much waits that the instance has fallen behind, a batch has all of the best, as long as its run takes no
more than so much longer: what is urgent comes behind two of them, one that runs and one that is next."""
DEEP_LEAST = 4
"""Fewer are no deep queue, however few pay."""
SMALL_BESIDE = 4
"""What is left behind is small beside a batch of so many times its items."""
BATCH_COST_S = 0.0015
"""What a batch costs the controller and the worker besides its run, where both share a core with it: its weights and
tensors have driven what they work with out of the caches. Of a model that runs in a millisecond, batches of one left
half of a core to it."""


class Curve:
    """Latency of one variant's batches in seconds, index = items. Made once per published variant."""

    __slots__ = ("full", "hard_limit", "is_fixed", "least_s", "mean_s", "most_s", "p95_s", "preferred", "variant")

    def __init__(self, variant: Variant) -> None:
        profile = variant.profile
        if profile is None:
            raise ValueError(f"variant {variant.name} has no profile, nothing can be predicted for it")
        self.variant = variant
        self.is_fixed = variant.fixed_batch is not None
        self.hard_limit = variant.fixed_batch or variant.max_batch_size
        """The most items one run may hold; for a fixed batch also the fewest."""
        self.p95_s = [variant.run_s(n) for n in range(self.hard_limit + 1)]
        self.mean_s = [variant.run_s(n, "mean_s") for n in range(self.hard_limit + 1)]
        self.least_s = list(self.p95_s)
        """The least p95 of any batch of at least so many items; measured curves need not rise everywhere."""
        for n in range(self.hard_limit - 1, -1, -1):
            self.least_s[n] = min(self.p95_s[n], self.least_s[n + 1])
        self.most_s = list(accumulate(self.p95_s, max))
        """The greatest p95 of any batch of at most so many items."""
        self.preferred = self.hard_limit if self.is_fixed else preferred_batch(self.mean_s, BATCH_COST_S)
        self.full = self.hard_limit if self.is_fixed else full_batch(self.mean_s, BATCH_COST_S, self.preferred)
        """The largest batch that a deep queue is worth."""

    def most_of(self, waiting: int) -> int:
        """How many of so many waiting items the next batch may hold: as many as pay, and a few more where those would
        be all that is left. Connections that are answered together come again together; without this they would fall
        into step as a full batch and a tiny one, which costs nearly as much. Where at least twice as many wait as pay,
        the instance has fallen behind, and whoever is left out of a batch waits longer than who is in a larger one."""
        is_deep = waiting >= max(2 * self.preferred, DEEP_LEAST)
        if is_deep:
            return min(waiting, self.full)
        most = self.preferred
        is_small = 0 < waiting - most <= most // SMALL_BESIDE
        return waiting if is_small and waiting <= self.hard_limit else most


def preferred_batch(mean_s: list[float], overhead_s: float) -> int:
    """The smallest batch that reaches enough of the best throughput, with the cost of the batch itself counted in, and
    beyond that as many items as cost nobody anything.

    `mean_s[n]` is the mean latency of n items; index 0 is not used.
    """
    rates = _rates(mean_s, overhead_s)
    best = max(rates)
    enough = next(n for n, rate in enumerate(rates) if rate >= PAYS * best)
    nearly_all = next(n for n, rate in enumerate(rates) if rate >= PAYS_UNSEEN * best)
    while enough < nearly_all and mean_s[enough + 1] <= UNSEEN_S:
        enough += 1
    return enough


def full_batch(mean_s: list[float], overhead_s: float, preferred: int) -> int:
    """The smallest batch with all of the best throughput, as far as its run takes no more than `DEEPER_S` longer than
    the preferred one's."""
    rates = _rates(mean_s, overhead_s)
    enough = next(n for n, rate in enumerate(rates) if rate >= PAYS_DEEP * max(rates))
    while enough > preferred and mean_s[enough] > mean_s[preferred] + DEEPER_S:
        enough -= 1
    return max(enough, preferred)


def _rates(mean_s: list[float], overhead_s: float) -> list[float]:
    """Items per second by batch size."""
    return [0.0, *(n / (latency_s + overhead_s) for n, latency_s in enumerate(mean_s[1:], 1))]
