"""What controllers said of the queries that they send here: which other variants these would have taken.

A controller's word is of a second or two, and the few queries of one kind among many of another may not be in each; so
words are put together for a while.
"""

from __future__ import annotations

from collections.abc import Mapping

from infaas.domain.ids import VariantName
from infaas.domain.variant import Variant
from infaas.domain.wish import Wish, Wishes
from infaas_worker.decide.exchange import Wanted

WORTH_S = 300.0
"""For so long a word counts, for rare queries are queries, too. The last one of a variant counts until there is
another."""
NAMED_FOR_S = 30.0
"""A variant that nobody has named for so long may be gone."""
KINDS_KEPT = 300
"""Of a variant, whatever the time."""
Kind = tuple[frozenset[VariantName], float]
"""Of queries: what they admit, and their time, roughly."""


class Heeding:
    """Told by the controllers' streams, asked by the model autoscaler, both on the event loop. What a controller said
    counts though it has gone: its callers ask others."""

    def __init__(self) -> None:
        self._words: dict[VariantName, dict[Kind, tuple[float, Wish]]] = {}
        """The last of each kind, the newest at the end."""
        self._variants: dict[VariantName, tuple[float, Variant]] = {}

    def heard(self, wishes: Wishes, now: float) -> None:
        for variant in wishes.variants:
            self._variants[variant.name] = now, variant
        for wish in wishes.wishes:
            kinds = self._words.setdefault(wish.variant, {})
            kind = frozenset(wish.admitted), float(f"{wish.latency_s:.2g}")
            kinds.pop(kind, None)
            kinds[kind] = now, wish
            while len(kinds) > KINDS_KEPT:
                del kinds[next(iter(kinds))]

    def variants(self, now: float) -> Mapping[VariantName, Variant]:
        """That could be loaded, as somebody still knows them."""
        self._variants = {name: known for name, known in self._variants.items() if now - known[0] <= NAMED_FOR_S}
        return {name: variant for name, (_, variant) in self._variants.items()}

    def wanted(self, now: float) -> Mapping[VariantName, Wanted]:
        found: dict[VariantName, Wanted] = {}
        for name, kinds in self._words.items():
            last = next(reversed(kinds))
            for kind in [kind for kind, (at, _) in kinds.items() if now - at > WORTH_S and kind != last]:
                del kinds[kind]
            wishes = [wish for _, wish in kinds.values()]
            admitted = frozenset(wishes[0].admitted).intersection(*[wish.admitted for wish in wishes[1:]])
            queries = sum([wish.queries for wish in wishes])
            items = sum([wish.items for wish in wishes])
            found[name] = Wanted(admitted, min(wish.latency_s for wish in wishes), items / queries if queries else 1.0)
        return found

    def forget_but(self, held: frozenset[VariantName]) -> None:
        """What was said of variants that are not here any more."""
        self._words = {name: words for name, words in self._words.items() if name in held}
