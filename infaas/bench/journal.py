"""What is kept of every query of a run: 45 bytes, whatever it was and however long the run. There may be many millions,
and an object per query would give the collector of garbage something to pause for."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infaas.bench.kept import KeptAnswers
from infaas.bench.reply import OK, Reply

_ENTRY = struct.Struct("<qIIIBddd")
_FIELDS = np.dtype(
    [
        ("number", "<i8"),
        ("mix", "<u4"),
        ("code", "<u4"),
        ("variant", "<u4"),
        ("marks", "u1"),
        ("due_s", "<f8"),
        ("sent_s", "<f8"),
        ("ended_s", "<f8"),
    ]
)
_COLD, _FALLBACK = 1, 2


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
        self._entries = bytearray()

    def __len__(self) -> int:
        return len(self._entries) // _ENTRY.size

    def add(self, number: int, mix: int, due_s: float, sent_s: float, ended_s: float, reply: Reply) -> None:
        fields = reply.fields
        code = self._number(reply.code, self.codes, self._code_numbers)
        variant = self._number(fields.get("x-infaas-variant", ""), self.variants, self._variant_numbers)
        marks = _COLD * (fields.get("x-infaas-cold-start") == "true") + _FALLBACK * ("x-infaas-fallback" in fields)
        self._entries += _ENTRY.pack(number, mix, code, variant, marks, due_s, sent_s, ended_s)
        if self.kept is not None and reply.code == OK:
            self.kept.offer(number, mix, reply)

    def columns(self) -> Columns:
        entries = np.frombuffer(bytes(self._entries), dtype=_FIELDS)
        return Columns(
            number=entries["number"],
            mix=entries["mix"].astype(np.int64),
            due_s=np.ascontiguousarray(entries["due_s"]),
            sent_s=np.ascontiguousarray(entries["sent_s"]),
            ended_s=np.ascontiguousarray(entries["ended_s"]),
            code=entries["code"].astype(np.int64),
            variant=entries["variant"].astype(np.int64),
            is_cold=(entries["marks"] & _COLD) > 0,
            is_fallback=(entries["marks"] & _FALLBACK) > 0,
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
