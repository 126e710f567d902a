"""What becomes of a query that comes back without an answer (SURFACE rule 15). Pure: what it went through is given.

Work that had not begun to run always gets another place. Work that ran when its instance ended gets one more try, by
itself; when that ends its instance too, the input is taken for the cause. What a worker says of the input itself is
final.
"""

from __future__ import annotations

from enum import Enum

from infaas.domain.query import Code

STAGED_LOSSES = 2
"""One that was staged at more instances than this when they were lost is suspected: the word that it had begun to run
may have been lost with them."""
_FINAL = frozenset(
    code.value for code in (Code.INVALID, Code.DEADLINE_PASSED, Code.TOO_LARGE, Code.UNSUPPORTED, Code.INTERNAL)
)
_OF_ONE_IN_MANY = frozenset({Code.MODEL_FAILED.value, Code.TOO_LARGE.value})
"""What a run can end with because of one of the queries that share it."""


class How(Enum):
    """How a query came back."""

    REFUSED = "refused"
    """Its worker said no before it ran, left it out of its batch, or could not be reached."""
    STAGED = "staged"
    """Lost with its instance before that was known to run it."""
    RAN = "ran"
    """Its instance ended while it ran."""
    RAISED = "raised"
    """The model failed in a run that it shared with others, any of which may have been the cause."""
    FINAL = "final"
    """The worker's word is about this very query; another try would not change it."""


class Verdict(Enum):
    AGAIN = "again"
    ALONE = "alone"
    """Again by itself, out of the retry budget."""
    FAILED = "failed"
    QUARANTINED = "quarantined"
    """It has ended two instances: it fails, and its input is not run for a while."""


def retry(deaths: int, losses: int, how: How) -> Verdict:
    """`deaths`: how often an instance has ended while running it, `losses`: how often one was lost while it was staged
    there, both without what has just happened."""
    if how is How.FINAL:
        return Verdict.FAILED
    if how is How.RAISED:
        return Verdict.ALONE
    if how is How.RAN or (how is How.STAGED and losses >= STAGED_LOSSES):
        return Verdict.QUARANTINED if deaths else Verdict.ALONE
    return Verdict.AGAIN


def how_batch_ended(code: str, *, was_running: bool, queries: int) -> How:
    """Of each query in a batch that its worker ended as a whole, with a code's slug."""
    if was_running and code in _OF_ONE_IN_MANY:
        return How.RAISED if queries > 1 else How.FINAL
    if code in _FINAL:
        return How.FINAL
    return How.RAN if was_running else How.REFUSED
