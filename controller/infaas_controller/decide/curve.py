"""What selection and batching need of a profile, laid out for the query path: latency by batch size as plain lists.

A curve also says how large a batch pays: where throughput stops growing, a larger batch only makes its first query wait
for its last.
"""

from __future__ import annotations

from itertools import accumulate

from infaas.domain.variant import Variant

PAYS = 0.9
"""The preferred batch is the smallest with at least this share of the best throughput (items per second). Measured
curves waver by some per cent; what a batch gains within that is not worth making its first query wait for its last."""
SMALL_BESIDE = 4
"""What is left behind is small beside a batch of so many times its items."""
BATCH_COST_S = 0.0008
"""What a batch costs the controller and the worker besides its run: of a model that runs in a millisecond, batches of
one left half of a core to it."""


class Curve:
    """Latency of one variant's batches in seconds, index = items. Made once per published variant."""

    __slots__ = ("hard_limit", "is_fixed", "least_s", "mean_s", "most_s", "p95_s", "preferred", "variant")

    def __init__(self, variant: Variant) -> None:
        profile = variant.profile
        if profile is None:
            raise ValueError(f"variant {variant.name} has no profile, nothing can be predicted for it")
        self.variant = variant
        self.is_fixed = variant.fixed_batch is not None
        self.hard_limit = variant.fixed_batch or variant.max_batch_size
        """The most items one run may hold; for a fixed batch also the fewest."""
        self.p95_s = [profile.latency_s(n) for n in range(self.hard_limit + 1)]
        self.mean_s = [profile.latency_s(n, "mean_s") for n in range(self.hard_limit + 1)]
        self.least_s = list(self.p95_s)
        """The least p95 of any batch of at least so many items; measured curves need not rise everywhere."""
        for n in range(self.hard_limit - 1, -1, -1):
            self.least_s[n] = min(self.p95_s[n], self.least_s[n + 1])
        self.most_s = list(accumulate(self.p95_s, max))
        """The greatest p95 of any batch of at most so many items."""
        self.preferred = self.hard_limit if self.is_fixed else preferred_batch(self.mean_s, BATCH_COST_S)

    def most_of(self, waiting: int) -> int:
        """How many of so many waiting items the next batch may hold: as many as pay, and a few more where those would
        be all that is left. Connections that are answered together come again together; without this they would fall
        into step as a full batch and a tiny one, which costs nearly as much."""
        rest = waiting - self.preferred
        is_small = 0 < rest <= self.preferred // SMALL_BESIDE
        return waiting if is_small and waiting <= self.hard_limit else self.preferred


def preferred_batch(mean_s: list[float], overhead_s: float) -> int:
    """The smallest batch that nearly reaches the best throughput, with the cost of the batch itself counted in.

    `mean_s[n]` is the mean latency of n items; index 0 is not used.
    """
    sizes = range(1, len(mean_s))
    best = max(n / (mean_s[n] + overhead_s) for n in sizes)
    return next(n for n in sizes if n / (mean_s[n] + overhead_s) >= PAYS * best)
