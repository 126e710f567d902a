"""What is kept of every query of a run, in columns: a run may have a million of them, and an object per query would
give the collector of garbage something to pause for."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infaas.bench.kept import KeptAnswers
from infaas.bench.reply import OK, Reply


@dataclass(frozen=True, slots=True)
class Columns:
    """One entry per query, in the order in which they ended; times in seconds since the run began."""

    number: npt.NDArray[np.int64]
    """Which query of the run it was: its inputs follow from that."""
    mix: npt.NDArray[np.int64]
    due_s: npt.NDArray[np.float64]
    sent_s: npt.NDArray[np.float64]
    ended_s: npt.NDArray[np.float64]
    code: npt.NDArray[np.int64]
    variant: npt.NDArray[np.int64]
    is_cold: npt.NDArray[np.bool_]
    is_fallback: npt.NDArray[np.bool_]


class Journal:
    """`codes` and `variants` are the words that the columns' numbers stand for; variant 0 is none."""

    def __init__(self, kept: KeptAnswers | None = None) -> None:
        """`kept` is offered every good answer; None: none is kept."""
        self.codes: list[str] = [OK]
        self.variants: list[str] = [""]
        self.kept = kept
        self._code_numbers = {OK: 0}
        self._variant_numbers = {"": 0}
        self._whole = array("q")
        self._times = array("d")

    def __len__(self) -> int:
        return len(self._times) // 3

    def add(self, number: int, mix: int, due_s: float, sent_s: float, ended_s: float, reply: Reply) -> None:
        fields = reply.fields
        code = self._number(reply.code, self.codes, self._code_numbers)
        variant = self._number(fields.get("x-infaas-variant", ""), self.variants, self._variant_numbers)
        is_cold = fields.get("x-infaas-cold-start") == "true"
        self._whole.extend((number, mix, code, variant, is_cold, "x-infaas-fallback" in fields))
        self._times.extend((due_s, sent_s, ended_s))
        if self.kept is not None and reply.code == OK:
            self.kept.offer(number, mix, reply)

    def columns(self) -> Columns:
        whole = np.array(self._whole, dtype=np.int64).reshape(-1, 6)
        times = np.array(self._times, dtype=np.float64).reshape(-1, 3)
        return Columns(
            number=whole[:, 0],
            mix=whole[:, 1],
            due_s=times[:, 0],
            sent_s=times[:, 1],
            ended_s=times[:, 2],
            code=whole[:, 2],
            variant=whole[:, 3],
            is_cold=whole[:, 4].astype(np.bool_),
            is_fallback=whole[:, 5].astype(np.bool_),
        )

    @staticmethod
    def _number(word: str, words: list[str], numbers: dict[str, int]) -> int:
        number = numbers.get(word)
        if number is None:
            number = numbers[word] = len(words)
            words.append(word)
        return number


def shares(words: Sequence[str], found: npt.NDArray[np.int64]) -> dict[str, int]:
    """How often each word occurs, the most frequent first."""
    counts = np.bincount(found, minlength=len(words))
    return {words[n]: int(counts[n]) for n in np.argsort(-counts, kind="stable") if counts[n]}
