"""A cross-check by `wrk`, where it is installed: the same requests by a program that is none of ours."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dataplane.generator import Address

_SIZE = struct.Struct("<I")
_RATE = re.compile(r"Requests/sec:\s+([0-9.]+)")
_HALF = re.compile(r"\s50%\s+([0-9.]+)(us|ms|s)\b")
_BAD = re.compile(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_SCRIPT = """
local file = assert(io.open(os.getenv("WRK_REQUESTS"), "rb"))
local requests, at = {}, 0
while true do
  local size = file:read(4)
  if not size then break end
  local a, b, c, d = size:byte(1, 4)
  requests[#requests + 1] = file:read(a + 256 * b + 65536 * c + 16777216 * d)
end
request = function()
  at = at % #requests + 1
  return requests[at]
end
"""


def find_wrk() -> Path | None:
    found = shutil.which("wrk")
    return None if found is None else Path(found)


def wrk_rate(
    program: Path, address: Address, requests: Sequence[bytes], connections: int, seconds: float, folder: Path
) -> tuple[float, float]:
    """Answers per second and the median latency by one thread of it. Raises SystemExit when not all answers are
    results."""
    script, file = folder / "wrk.lua", folder / "wrk-requests.bin"
    script.write_text(_SCRIPT)
    file.write_bytes(b"".join(_SIZE.pack(len(request)) + request for request in requests))
    words = [program, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "-s", script]
    done = subprocess.run(
        [*map(str, words), f"http://{address[0]}:{address[1]}"],
        env={**os.environ, "WRK_REQUESTS": str(file)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return said(done.stdout or done.stderr)


def said(text: str) -> tuple[float, float]:
    rate, half, bad = _RATE.search(text), _HALF.search(text), _BAD.search(text)
    if rate is None or half is None or bad is not None:
        raise SystemExit(f"wrk: {bad[0] if bad else text.strip()[-300:]}")
    return float(rate[1]), float(half[1]) * _UNITS[half[2]]
