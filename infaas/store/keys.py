"""The only file that knows how the store's keys are called in Redis, and what lies under them.

All keys share one hash tag, so that a script that touches several of them works wherever they are kept together.

    {ns}:epoch          string  made when the store was first written
    {ns}:changes        stream  every change; an entry's id is `<sequence>-<microseconds>`
    {ns}:expiry         zset    member `kind:key` → when it expires, in milliseconds of the server's clock
    {ns}:versions       hash    `kind:key` → version; outlives the record for a while, so that versions never go back
    {ns}:gone           zset    `kind:key` of deleted records → when, to forget their versions in the end
    {ns}:lease:holders  hash    lease → holder
    {ns}:lease:fences   hash    lease → last fence given out; never deleted
    {ns}:lease:expiry   zset    lease → when it ends
    {ns}:expiry:unfollowed  zset  as `expiry`, of kinds that nobody follows
    {ns}:record:<kind>  hash    key → value

A newer program may keep kinds that are not known here: they are left alone wherever they are met (ADR 33).
"""

from __future__ import annotations

import re

from infaas.errors import SettingsError
from infaas.store.base import UNFOLLOWED, Kind

KINDS: tuple[Kind, ...] = tuple(Kind)
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FIXED = (
    "epoch", "changes", "expiry", "versions", "gone", "lease:holders", "lease:fences", "lease:expiry",
    "expiry:unfollowed",
)  # fmt: skip


def all_keys(namespace: str) -> list[str]:
    """Every key, in the order that the scripts number them. Raises SettingsError for a namespace that cannot be one."""
    if not _NAMESPACE.fullmatch(namespace):
        raise SettingsError(f"store namespace {namespace!r} must match {_NAMESPACE.pattern}")
    return [f"{{{namespace}}}:{name}" for name in (*_FIXED, *(f"record:{kind.value}" for kind in KINDS))]


def changes_key(namespace: str) -> str:
    return all_keys(namespace)[_FIXED.index("changes")]


def lua_names() -> str:
    """The keys as the scripts call them: `EPOCH`, `LEASE_HOLDERS` …, `RECORDS[kind]` and `UNFOLLOWED[kind]`."""
    named = [f"local {name.replace(':', '_').upper()} = KEYS[{number}]" for number, name in enumerate(_FIXED, start=1)]
    records = [f"['{kind.value}'] = KEYS[{number}]" for number, kind in enumerate(KINDS, start=len(_FIXED) + 1)]
    unfollowed = [f"['{kind.value}'] = true" for kind in sorted(UNFOLLOWED)]
    tables = [f"local {name} = {{{', '.join(of)}}}" for name, of in (("RECORDS", records), ("UNFOLLOWED", unfollowed))]
    return "\n".join([*named, *tables])
