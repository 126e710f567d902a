"""What a selection policy promises. A new policy is one file, one test file, one entry point.

On arrival a policy says `Bind` (the query stays with that place), `Hold` (reserve there; choose again while it waits if
need be) or `Refuse`. When a slot frees, the class whose head runs next is picked by `infaas_controller.decide.form`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from infaas.domain.query import Refusal
from infaas_controller.decide.options import Option, Situation


@dataclass(frozen=True, slots=True)
class Bind:
    option: Option
    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    option: Option
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    refusal: Refusal


Verdict = Bind | Hold | Refuse


class Policy(Protocol):
    """Made once per name and parameter (`static:variant-name` is the policy `static` with a parameter).

    One that has an attribute `decides_together`, and it is true, is asked once for queries that are alike and came in
    the same moment: others join the batch that the first would run in while all are in time, and are refused with it.
    """

    @property
    def name(self) -> str:
        """As callers give it, parameter included."""

    def on_arrival(self, situation: Situation) -> Verdict:
        """The admission is not empty. Pure but for the policy's own memory of what it has been shown."""


def first_in_time(options: Iterable[Option], deadline: float) -> Option | None:
    """Of those that meet the deadline, the least predicted completion; equal ones by the variant's name."""
    best: Option | None = None
    for option in options:
        if option.at > deadline:
            continue
        if best is None or (option.at, option.variant.name) < (best.at, best.variant.name):
            best = option
    return best
