"""What a variant adds to its process: proportional set size now, and the most that was resident meanwhile."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

_SMAPS = Path("/proc/self/smaps_rollup")
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


@dataclass(frozen=True, slots=True)
class Memory:
    """Figures before the variant was loaded."""

    pss_bytes: int
    rss_bytes: int
    is_peak_reset: bool
    """Where the kernel does not let a process reset its high-water mark, the peak is what is resident."""

    @classmethod
    def start(cls) -> Memory:
        gc.collect()
        try:
            _CLEAR.write_text(_RESET_PEAK)
            is_reset = True
        except OSError:
            is_reset = False
        return cls(_kib(_SMAPS, "Pss:"), _kib(_STATUS, "VmRSS:"), is_reset)

    def grown_bytes(self) -> int:
        return max(0, _kib(_SMAPS, "Pss:") - self.pss_bytes)

    def peak_bytes(self) -> int:
        most = _kib(_STATUS, "VmHWM:") if self.is_peak_reset else _kib(_STATUS, "VmRSS:")
        return max(0, most - self.rss_bytes)


def _kib(path: Path, field: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0
