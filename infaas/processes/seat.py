"""A process's place among those that are one program: which of how many it is, and the memory that they share.

The master tells each process through its environment, once, when it starts it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from infaas.errors import SettingsError
from infaas.processes.claim import Claim

SEAT = "INFAAS_SEAT"
"""The variable that says which seat a process has; none: it is alone."""


@dataclass(frozen=True, slots=True)
class Seat:
    """`numbers` and `notes` are descriptors, one for each seat."""

    number: int = 1
    count: int = 1
    group: str = ""
    """What all of them have in common in their names."""
    master: int = 0
    """The master's process id."""
    numbers: tuple[int, ...] = ()
    notes: tuple[int, ...] = ()

    @property
    def is_alone(self) -> bool:
        return not self.group

    @property
    def claim(self) -> Claim:
        return Claim(self.notes[0] if self.notes else None)

    @property
    def name(self) -> str:
        """`c-9ee0dff1d6-2`; the same for every process that ever has this seat."""
        return f"{self.group}-{self.number}"

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that a process with this seat needs."""
        return (*self.numbers, *self.notes)

    def has_neighbour(self, name: str) -> bool:
        """Whether a name is that of another seat, taken or not, of the same program."""
        group, _, number = name.rpartition("-")
        return not self.is_alone and group == self.group and number.isdigit() and name != self.name

    def environ(self) -> dict[str, str]:
        return {SEAT: json.dumps(asdict(self))}


def seat_of(environ: Mapping[str, str]) -> Seat:
    """This process's. What it starts itself does not get the shared memory.

    Raises SettingsError for a seat that was not given by a master.
    """
    text = environ.get(SEAT)
    if not text:
        return Seat()
    try:
        told = json.loads(text)
        seat = Seat(**{**told, "numbers": tuple(told["numbers"]), "notes": tuple(told["notes"])})
        for descriptor in seat.descriptors:
            os.set_inheritable(descriptor, False)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise SettingsError(f"{SEAT} is set by the master of several processes alone, not by hand ({error})") from error
    return seat
