"""How long `infaas up` takes to be ready, and what the idle system holds: `python benchmarks/footprint.py`.

Memory is the proportional set size (PSS) of every process of the system, read once it has been idle for a few seconds;
what a program started counts with it. Exit status 1 when the slowest start or the median of what all hold together is
beyond its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import psutil

FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
SETTLE_S = 5.0
READY_WITHIN_S = 5.0
MOST_BYTES = 400e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, choices=range(1, 101), metavar="N")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    rounds = [one_round() for _ in range(arguments.rounds)]
    ready = [ready_s for ready_s, _ in rounds]
    print(f"ready after: median {statistics.median(ready):.2f} s, worst {max(ready):.2f} s of {len(ready)}")
    print(f"{'process':<24}{'PSS MiB':>10}")
    names = list(rounds[0][1])
    medians = {name: statistics.median(memory[name] for _, memory in rounds) for name in names}
    for name in names:
        print(f"{name:<24}{medians[name] / 2**20:>10.1f}")
    in_all = statistics.median(sum(memory.values()) for _, memory in rounds)
    print(f"{'in all':<24}{in_all / 2**20:>10.1f}")
    if arguments.json:
        figures = {"ready_s": ready, "pss_bytes": medians, "pss_bytes_in_all": in_all}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    broken = broken_bounds(ready, in_all)
    print("\n".join(broken) if broken else "within its bounds")
    return 1 if broken else 0


def broken_bounds(ready_s: Sequence[float], in_all_bytes: float) -> list[str]:
    found = []
    if max(ready_s) > READY_WITHIN_S:
        found.append(f"broken: ready after {max(ready_s):.2f} s, and not within {READY_WITHIN_S:g} s")
    if in_all_bytes > MOST_BYTES:
        found.append(f"broken: {in_all_bytes / 1e6:.0f} MB in all, and not at most {MOST_BYTES / 1e6:.0f} MB")
    return found


def one_round() -> tuple[float, dict[str, float]]:
    """Seconds until `infaas up --detach` says ready, and PSS by process."""
    with tempfile.TemporaryDirectory() as state:
        environment = {**os.environ, "INFAAS_STATE_DIR": state}
        infaas = str(Path(sys.executable).with_name("infaas"))
        begin = time.perf_counter()
        subprocess.run([infaas, "up", "--detach", *FREE_PORTS], env=environment, check=True, capture_output=True)
        ready_s = time.perf_counter() - begin
        try:
            time.sleep(SETTLE_S)  # idle is what is measured
            up = json.loads((Path(state) / "run" / "up.json").read_text())
            programs = {each["name"]: each["pid"] for each in up["programs"]}
            memory = {"supervisor": pss(up["pid"], without=programs.values())}
            memory |= {name: pss(pid) for name, pid in programs.items()}
        finally:
            subprocess.run([infaas, "down"], env=environment, check=True, capture_output=True)
    return ready_s, memory


def pss(pid: int, without: Collection[int] = ()) -> float:
    """Of the process and all below it, but for those processes and what is below them."""
    process = psutil.Process(pid)
    below = sum(pss(child.pid, without) for child in process.children() if child.pid not in without)
    return float(process.memory_full_info().pss) + below


if __name__ == "__main__":
    sys.exit(main())
