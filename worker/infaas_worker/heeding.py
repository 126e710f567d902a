"""What controllers said of the queries that they send here: which other variants these would have taken.

A controller's word is of a second or two, and the few queries of one kind among many of another may not be in each; so
words are put together for a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from infaas.domain.ids import VariantName
from infaas.domain.variant import Variant
from infaas.domain.wish import Wish, Wishes
from infaas_worker.decide.exchange import Wanted

WORTH_S = 30.0
"""For so long a word counts. The last one of a variant counts until there is another."""
WORDS_KEPT = 300
"""Of a variant, whatever the time."""


class Heeding:
    """Told by the controllers' streams, asked by the model autoscaler, both on the event loop."""

    def __init__(self) -> None:
        self._words: dict[VariantName, deque[tuple[float, str, Wish]]] = {}
        self._variants: dict[VariantName, tuple[float, Variant]] = {}

    def heard(self, controller: str, wishes: Wishes, now: float) -> None:
        for variant in wishes.variants:
            self._variants[variant.name] = now, variant
        for wish in wishes.wishes:
            words = self._words.setdefault(wish.variant, deque(maxlen=WORDS_KEPT))
            words.append((now, controller, wish))

    def left(self, controller: str) -> None:
        """What it asked for, nobody asks for any more."""
        for name, words in list(self._words.items()):
            kept = [word for word in words if word[1] != controller]
            if kept:
                self._words[name] = deque(kept, maxlen=WORDS_KEPT)
            else:
                del self._words[name]

    def variants(self, now: float) -> Mapping[VariantName, Variant]:
        """That could be loaded, as somebody still knows them."""
        self._variants = {name: known for name, known in self._variants.items() if now - known[0] <= WORTH_S}
        return {name: variant for name, (_, variant) in self._variants.items()}

    def wanted(self, now: float) -> Mapping[VariantName, Wanted]:
        found: dict[VariantName, Wanted] = {}
        for name, words in self._words.items():
            while len(words) > 1 and now - words[0][0] > WORTH_S:
                words.popleft()
            wishes = [wish for _, _, wish in words]
            admitted = frozenset(wishes[0].admitted).intersection(*[wish.admitted for wish in wishes[1:]])
            queries = sum([wish.queries for wish in wishes])
            items = sum([wish.items for wish in wishes])
            found[name] = Wanted(admitted, min(wish.latency_s for wish in wishes), items / queries if queries else 1.0)
        return found

    def forget_but(self, held: frozenset[VariantName]) -> None:
        """What was said of variants that are not here any more."""
        self._words = {name: words for name, words in self._words.items() if name in held}
