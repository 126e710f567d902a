"""What this machine's processor can compute with, as far as recipes care."""

from __future__ import annotations

from infaas import machine

OF_INTEREST = frozenset(
    {"amx_fp16", "amx_int8", "asimd", "asimddp", "asimdhp", "avx512_fp16", "avx512_vnni", "avx_vnni"}
)


def recipe_features() -> tuple[str, ...]:
    """Sorted, by the kernel's names; none where the kernel does not tell."""
    return tuple(sorted(OF_INTEREST & machine.cpu_features()))
