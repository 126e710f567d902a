"""The answers of a run that are kept to be scored: however long it is, one for each distinct query and requirement set.

A run asks the same queries again and again, and a repeat says nothing new of how good the answers are: rows repeated a
thousand times are not a thousand times the evidence. So of all answers to one query under one set a single one is kept,
drawn evenly by reservoir sampling (Vitter, Random Sampling with a Reservoir, ACM TOMS 11(1), 1985): where several
variants served a query, each has the chance that its share of the answers gives it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from infaas.bench.reply import Reply

MOST_BYTES = 256 * 2**20
REPLY_BYTES = 4_096
"""What an answer's headers and objects take beside its content, about."""


@dataclass(slots=True)
class _Kept:
    came: int
    """Answers to choose from so far."""
    reply: Reply | None
    """None: it did not fit."""


class KeptAnswers:
    """Queries whose numbers leave the same rest by `slots` are the same query."""

    def __init__(self, slots: int, *, seed: int = 1, most_bytes: int = MOST_BYTES) -> None:
        self._slots = slots
        self._seed = seed
        self._draw = random.Random(f"kept {seed}")
        self._left_bytes = most_bytes
        self._kept: dict[tuple[int, int], _Kept] = {}

    @property
    def unkept(self) -> int:
        """Distinct queries and sets of which no answer fitted."""
        return sum(one.reply is None for one in self._kept.values())

    def offer(self, number: int, mix: int, reply: Reply) -> None:
        """Keep the answer or do not. One that is too large for what is left leaves things as they are."""
        key = (mix, number % self._slots)
        one = self._kept.get(key)
        if one is None:
            one = self._kept[key] = _Kept(0, None)
        one.came += 1
        if self._draw.random() * one.came >= 1.0:
            return
        more = _bytes_of(reply) - (0 if one.reply is None else _bytes_of(one.reply))
        if more <= self._left_bytes:
            self._left_bytes -= more
            one.reply = reply

    def of(self, mix: int | None) -> dict[int, Reply]:
        """By slot, in order: the answers under one set, or under any of them, drawn evenly from all that came."""
        if mix is not None:
            found = {slot: one.reply for (its_mix, slot), one in self._kept.items() if its_mix == mix}
        else:
            draw, came, found = random.Random(f"any {self._seed}"), dict[int, int](), dict[int, Reply | None]()
            for (_, slot), one in sorted(self._kept.items()):
                if one.reply is not None:
                    came[slot] = came.get(slot, 0) + one.came
                    if draw.random() * came[slot] < one.came:
                        found[slot] = one.reply
        return {slot: reply for slot, reply in sorted(found.items()) if reply is not None}


def _bytes_of(reply: Reply) -> int:
    return len(reply.content) + REPLY_BYTES
