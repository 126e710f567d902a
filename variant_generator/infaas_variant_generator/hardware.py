"""What this machine's processor can compute with, as far as recipes care."""

from __future__ import annotations

from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
OF_INTEREST = frozenset(
    {"amx_fp16", "amx_int8", "asimd", "asimddp", "asimdhp", "avx512_fp16", "avx512_vnni", "avx_vnni"}
)


def cpu_features(cpu_info: Path = CPU_INFO) -> tuple[str, ...]:
    """Sorted, by the kernel's names; none where the kernel does not tell."""
    try:
        text = cpu_info.read_text()
    except OSError:
        return ()
    return parse_features(text)


def parse_features(cpu_info: str) -> tuple[str, ...]:
    """What every processor of the listing has: work may be put on any of them."""
    lines = [line.partition(":") for line in cpu_info.splitlines()]
    found = [frozenset(value.split()) for key, _, value in lines if key.strip() in ("flags", "Features")]
    return tuple(sorted(OF_INTEREST.intersection(*found))) if found else ()
