"""Identifiers, and the one rule for names.

A name is what a user types: of a task, a model (architecture) or a variant. All three share one namespace, because a
caller may put any of them into the same place of a URL.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import NewType

TaskName = NewType("TaskName", str)
ModelName = NewType("ModelName", str)
VariantName = NewType("VariantName", str)
VersionId = NewType("VersionId", str)
"""`model@7`: never typed by a user, so the character that names may not hold keeps it apart from them."""
InstanceId = NewType("InstanceId", str)
WorkerId = NewType("WorkerId", str)
ControllerId = NewType("ControllerId", str)
DecisionId = NewType("DecisionId", str)
TenantName = NewType("TenantName", str)
"""On whose behalf queries come; formed like a name, but in a namespace of its own."""
BuildId = NewType("BuildId", str)
Digest = NewType("Digest", str)
"""Lower-case hexadecimal SHA-256 of an artifact's bytes."""

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
MAX_NAME_LENGTH = 128
_NAME = re.compile(NAME_PATTERN)
_DIGEST = re.compile(r"[0-9a-f]{64}")


def name_problem(name: str, what: str = "name") -> str | None:
    """What is wrong with a name, in words that help to mend it; None when it is fine."""
    if _NAME.fullmatch(name):
        return None
    shown = name if len(name) <= 60 else name[:57] + "..."
    return (
        f"{what} {shown!r} must match {NAME_PATTERN} "
        "(a letter or digit, then up to 127 letters, digits, '.', '_' or '-')"
    )


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def version_id(model: str, version: int) -> VersionId:
    return VersionId(f"{model}@{version}")


def variant_name(model: str, version: int, recipe: str) -> VariantName:
    """`digits-cnn.v1.ort-fp32-t1`; a model's name too long to leave room is cut and told apart by its hash."""
    tail = f".v{version}.{recipe}"
    if len(model) + len(tail) > MAX_NAME_LENGTH:
        mark = hashlib.sha256(model.encode()).hexdigest()[:8]
        model = f"{model[: MAX_NAME_LENGTH - len(tail) - 9]}-{mark}"
    return VariantName(model + tail)


def fresh_id(prefix: str) -> str:
    """A short random identifier such as `w-3f9c1a2b7d`."""
    return f"{prefix}-{secrets.token_hex(5)}"
