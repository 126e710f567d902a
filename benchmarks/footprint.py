"""How long `infaas up` takes to be ready, and what the idle system holds: `python benchmarks/footprint.py`.

Memory is the proportional set size (PSS) of every process of the system, read once it has been idle for a few seconds.
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
from pathlib import Path

import psutil

FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
SETTLE_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
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
    print(f"{'in all':<24}{sum(medians.values()) / 2**20:>10.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ready_s": ready, "pss_bytes": medians}, indent=1))


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
            memory = {"supervisor": pss(up["pid"])}
            memory |= {each["name"]: pss(each["pid"]) for each in up["programs"]}
        finally:
            subprocess.run([infaas, "down"], env=environment, check=True, capture_output=True)
    return ready_s, memory


def pss(pid: int) -> float:
    return float(psutil.Process(pid).memory_full_info().pss)


if __name__ == "__main__":
    main()
