"""Which rows of a set calibrate: those that `set_aside` takes from an evaluation set, or `calibration_rows` from a set
of its own.

Pure. Rows are chosen by the digests of their values, given as the task's inputs, and by nothing else of them or of the
model; their order decides only which of several equal rows `calibration_rows` names. So all versions that are given the
same evaluation set and no calibration set are scored on the same rows, and what is set aside is never scored. Who gives
a calibration set has every evaluation row scored that does not occur in it (`arrays` sees to that): compare versions
that were given the same. See ADR "Rows that calibrate are set aside for everyone".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CALIBRATION_ROWS = 128
"""More hardly move the ranges of a quantisation, and each costs a run of the original with all its inner values."""
CALIBRATION_SHARE = 0.2
"""Of the evaluation rows at most: what is set aside makes every interval of accuracy wider."""
FEWEST_ROWS = 2
"""Different ones; from a single one no range can be learnt."""
_SEED = b"infaas calibration rows, 1"


def row_digests(inputs: Mapping[str, NDArray[Any]], encode: Callable[[NDArray[Any]], bytes]) -> tuple[bytes, ...]:
    """Of each row, over all inputs; `encode` gives an array's bytes."""
    names = sorted(inputs)
    count = len(inputs[names[0]]) if names else 0
    digests = []
    for row in range(count):
        digest = hashlib.sha256(_SEED)
        for name in names:
            data = encode(inputs[name][row : row + 1])
            digest.update(f"{name}:{len(data)}:".encode())
            digest.update(data)
        digests.append(digest.digest())
    return tuple(digests)


def calibration_rows(digests: Sequence[bytes], most: int = CALIBRATION_ROWS) -> NDArray[np.intp]:
    """At most so many rows, each value once, spread by digest over all of them; ascending."""
    first: dict[bytes, int] = {}
    for row, digest in enumerate(digests):
        first.setdefault(digest, row)
    chosen = [first[digest] for digest in sorted(first)[:most]]
    return np.array(sorted(chosen), dtype=np.intp)


def set_aside(
    digests: Sequence[bytes], share: float = CALIBRATION_SHARE, most: int = CALIBRATION_ROWS
) -> NDArray[np.bool_]:
    """A mask of the evaluation rows that calibrate and are not scored; all False where they are too few to spare any.

    Equal rows go to the same side. A value that would take more than what is left of the allowance stays.
    """
    rows_of: dict[bytes, list[int]] = {}
    for row, digest in enumerate(digests):
        rows_of.setdefault(digest, []).append(row)
    allowance = min(int(len(digests) * share), most)
    mask = np.zeros(len(digests), dtype=np.bool_)
    values = 0
    for digest in sorted(rows_of):
        rows = rows_of[digest]
        if len(rows) <= allowance:
            mask[rows] = True
            allowance -= len(rows)
            values += 1
    return mask if values >= FEWEST_ROWS else np.zeros(len(digests), dtype=np.bool_)
