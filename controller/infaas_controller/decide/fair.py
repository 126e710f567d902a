"""How tenants share what there is too little of: whose query is next, how long one waits, who leaves a full queue.

Whose turn it is follows start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996). Every tenant has a tag that
grows by the items it is served, the least tag goes next, and who was idle joins a little behind the tag that is being
served: what he left to others comes back to him in a burst, up to a bound. For queries of one item that is round
robin. In general what two tenants are served while both wait differs by no more than the largest query of each, as with
deficit round robin (Shreedhar and Varghese, SIGCOMM 1995), and nobody is skipped until his deficit covers a large one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

CREDIT_ITEMS = 8
"""What a tenant that takes less than his part may be behind when he comes: arrivals that are not even come in bursts,
and are none the less within his part."""
HALF_LIFE_ITEMS = 128
"""What was served this many items ago counts half in who was served how much lately."""
FORGOTTEN_AFTER_ITEMS = 8 * HALF_LIFE_ITEMS
"""A tenant that waits for nothing is forgotten when so many items of others were served since it did."""

T = TypeVar("T", bound=Hashable)


def joined(tag: float, virtual: float) -> float:
    """The tag of a tenant that begins to wait; `virtual` is the highest that was served. One that was served ahead of
    the others keeps what it is ahead, one that was served less is owed a little of it."""
    return max(tag, virtual - CREDIT_ITEMS)


def faded(recent: float, served: float) -> float:
    """What is left of a count of items, `served` items later."""
    return recent * math.exp2(-served / HALF_LIFE_ITEMS)


def items_before(
    own: int, items: int, others: int, tenants: int, pace: float, known: int, behind: float = 0.0
) -> float:
    """How many items are served before `items` more of a tenant that has `own` waiting.

    Its own, and of each of the other `tenants` that wait at most as many as it gets itself, without those that it is
    `behind`; they have `others` in all.
    `pace` is its part of what was served lately, to `known` tenants. Who gets more than an equal part is overtaken by
    what the others will still send, so that it is not promised to get on faster than it did.
    """
    fair = own + min(float(others), tenants * max(0.0, own + items - behind))
    return max(fair, own / pace) if pace * known > 1.0 else fair


def ahead_of(ahead: Sequence[int], urgency: int, part: float) -> int:
    """Of the items promised to an instance (`ahead`: by urgency, those of each and of all that are more urgent), how
    many run before the next one, where tenants share what waits at its priority and `part` of that goes first."""
    first = urgency & ~1
    above = ahead[first - 1] if first else 0
    return above + math.ceil((ahead[first + 1] - above) * part)


def who_yields(held: Mapping[T, int], asking: T, wanted: int, need: int) -> T | None:
    """Whose queries leave a full queue to make `need` room for `wanted` of `asking`: the tenant that holds most of it,
    if it would still hold no less than who asks. None: nobody else's, so that in a flood it is the flood that is
    refused, and everyone who keeps within an equal part finds room."""
    rivals = [tenant for tenant in held if tenant != asking]
    if not rivals:
        return None
    most = max(rivals, key=held.__getitem__)
    return most if held[most] - need >= held.get(asking, 0) + wanted else None
