"""What every engine of the store checks and answers alike."""

from __future__ import annotations

from infaas.errors import PreconditionError
from infaas.store.base import Kind, Lease


def milliseconds(ttl_s: float) -> int:
    """Raises ValueError unless it is at least a millisecond."""
    if not ttl_s >= 0.001:
        raise ValueError(f"ttl_s must be at least 0.001, not {ttl_s}")
    return round(ttl_s * 1e3)


def refusal(found: int | None, kind: Kind, key: str, expect: int | None, lease: Lease | None) -> PreconditionError:
    """What a refused write raises; `found` is the version that is there, or None when the lease was the reason."""
    if found is None and lease is not None:
        return PreconditionError(
            f"{kind.value} {key!r} was not written: {lease.holder!r} no longer holds lease {lease.name!r} "
            f"with fence {lease.fence}"
        )
    return PreconditionError(f"{kind.value} {key!r} was not written: it has version {found}, not {expect}")
