"""The limit: what one core does with a model inside one process, without any server. Run as a program of its own.

    python offline.py MODEL.onnx [--seconds 1.0]

Prints JSON: for each batch size the rows per second (best of a few rounds, because the host steals time) and the
median of one call. Threads and spinning are set as a worker sets them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BATCHES = (1, 2, 4, 8, 16, 32)
ROUNDS = 3
_NEARLY = 0.97


@dataclass(frozen=True, slots=True)
class Limit:
    rows_per_s: Mapping[int, float]
    """By batch size."""
    alone_s: float
    """The median of one call at batch 1."""
    alone_p95_s: float
    alone_cpu_s: float
    """Processor time of one call at batch 1, the mean."""

    @property
    def best_batch(self) -> int:
        return max(self.rows_per_s, key=self.rows_per_s.__getitem__)

    @property
    def gaining_batch(self) -> int:
        """The smallest that has nearly the best rate: what a larger one seems to gain is noise."""
        return next(batch for batch, rate in sorted(self.rows_per_s.items()) if rate >= _NEARLY * self.best)

    @property
    def best(self) -> float:
        return self.rows_per_s[self.best_batch]


def limit_of(file: Path, core: int | None, seconds: float) -> Limit:
    """Measured by a process pinned to `core`; None leaves it where this one is."""
    words = [sys.executable, str(Path(__file__).resolve()), str(file), "--seconds", str(seconds)]
    pin = [] if core is None else ["--core", str(core)]
    done = subprocess.run([*words, *pin], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the in-process limit of {file.name} could not be measured: {done.stderr[-2000:]}")
    said = json.loads(done.stdout)
    rows = {int(batch): float(rate) for batch, rate in said["rows_per_s"].items()}
    return Limit(rows, float(said["alone_s"]), float(said["alone_p95_s"]), float(said["alone_cpu_s"]))


def _measure(file: str, seconds: float) -> dict[str, Any]:
    from infaas.runtimes.onnxruntime_options import open_session

    session = open_session(file, 1)
    given, made = session.get_inputs()[0], [session.get_outputs()[0].name]
    row = [int(size) for size in given.shape[1:]]
    draw = np.random.default_rng(1)
    rates: dict[int, float] = {}
    alone: list[float] = []
    alone_cpu_s = 0.0
    for batch in BATCHES:
        feed = {given.name: draw.standard_normal((batch, *row), dtype=np.float32)}
        session.run(made, feed)
        best = 0.0
        for _ in range(ROUNDS):
            cpu_s = time.process_time()
            times = _timed(session, made, feed, seconds / len(BATCHES) / ROUNDS)
            best = max(best, batch * len(times) / sum(times))
            if batch == 1:
                alone += times
                alone_cpu_s += time.process_time() - cpu_s
        rates[batch] = best
    return {
        "rows_per_s": rates,
        "alone_s": statistics.median(alone),
        "alone_p95_s": float(np.quantile(alone, 0.95)),
        "alone_cpu_s": alone_cpu_s / len(alone),
    }


def _timed(session: Any, made: list[str], feed: dict[str, Any], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end or len(times) < 3:
        session.run(made, feed)
        times.append(time.perf_counter() - begun)
    return times


def _main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--core", type=int)
    chosen = parser.parse_args()
    if chosen.core is not None:
        os.sched_setaffinity(0, {chosen.core})
    print(json.dumps(_measure(chosen.file, chosen.seconds)))


if __name__ == "__main__":
    _main()
