"""How well predicted latency agrees with observed latency under light load, per variant.

    python benchmarks/prediction.py [--models digits-svm,digits-mlp] [--seconds 8] [--load 0.15] [--json FILE]

Brings up a private system, registers models of the demo's family, and asks each of their variants by name: Poisson
arrivals at a share of what the variant could do, over one connection (one that is due while another is under way leaves
right after it). Both latencies are the controller's
own, from the arrival of the request's body to its answer, as its decisions record them. A prediction is itself a 95th
percentile: what nineteen of twenty queries like this one will keep. So the usual (median) prediction is compared with
the 95th percentile of what was observed: within 20 % or 0.5 ms. "kept" is the share of queries that were answered
within what was predicted for them. Every query is looked up. Exit status 1 when a variant is further off.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from own_system import Caller, images, own_system, register

from infaas.client import Client
from infaas.control import VariantDocument

MODELS = "digits-cnn-large,digits-cnn-medium,digits-svm,digits-mlp"
WITHIN_SHARE = 0.20
WITHIN_MS = 0.5
MOST_PER_S = 60.0
"""Light for the machine, too: client, controller and worker share its cores."""
LEARNING_QUERIES = 60
LOADED_WITHIN_S = 20.0
PAGE = 1_000
MOST_QUERIES = PAGE - 100
"""Decisions are looked up a page at a time, the newest first; others may ask meanwhile where the system is not ours."""


@dataclass(frozen=True)
class Row:
    variant: str
    threads: int
    queries: int
    per_s: float
    observed_p50_ms: float
    observed_p95_ms: float
    promised_ms: float
    """The median prediction."""
    promised_p95_ms: float
    """How far predictions went while the machine was disturbed."""
    off_ms: float
    off_share: float
    kept: float
    is_within: bool


def measure(client: Client, variant: VariantDocument, seconds: float, load: float, rng: random.Random) -> Row:
    caller = Caller(client.url, variant.name, images())
    wanted = {"x-infaas-slo-accuracy-min": "0"}
    _load(caller, wanted)
    per_s = min(MOST_PER_S, load / ((variant.p50_ms or 1.0) / 1e3))
    for _ in range(LEARNING_QUERIES):
        caller.ask(wanted)
        time.sleep(min(1 / per_s, 0.02))
    count = max(40, int(seconds * per_s))
    if count > MOST_QUERIES:
        raise SystemExit(
            f"{variant.name}: {count} queries in {seconds:g} s; {MOST_QUERIES} can be looked up afterwards"
        )
    asked = set()
    due = time.perf_counter()
    for _ in range(count):
        due += rng.expovariate(per_s)
        time.sleep(max(0.0, due - time.perf_counter()))
        status, headers, content = caller.ask(wanted)
        if status != 200:
            raise SystemExit(f"{variant.name}: {status} {content.decode(errors='replace')}")
        asked.add(headers["x-infaas-decision-id"])
    caller.close()
    found = [one for one in client.decisions(PAGE) if one.id in asked]
    if len(found) != count:
        raise SystemExit(
            f"{variant.name}: {count} queries were answered, and {len(found)} of their decisions are there"
        )
    predicted = np.array([one.predicted_ms for one in found], dtype=np.float64)
    observed = np.array([one.observed_ms for one in found], dtype=np.float64)
    off_ms = float(np.median(predicted) - np.quantile(observed, 0.95))
    share = off_ms / float(np.quantile(observed, 0.95))
    return Row(
        variant=variant.name,
        threads=variant.threads,
        queries=len(found),
        per_s=per_s,
        observed_p50_ms=float(np.median(observed)),
        observed_p95_ms=float(np.quantile(observed, 0.95)),
        promised_ms=float(np.median(predicted)),
        promised_p95_ms=float(np.quantile(predicted, 0.95)),
        off_ms=off_ms,
        off_share=share,
        kept=float(np.mean(observed <= predicted)),
        is_within=abs(off_ms) <= WITHIN_MS or abs(share) <= WITHIN_SHARE,
    )


def _load(caller: Caller, wanted: dict[str, str]) -> None:
    """Ask until the variant is loaded."""
    deadline = time.monotonic() + LOADED_WITHIN_S
    while True:
        status, headers, content = caller.ask(wanted)
        if status == 200 and headers.get("x-infaas-cold-start") != "true":
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"not loaded: {status} {content.decode(errors='replace')}")
        time.sleep(0.05)


def show(rows: list[Row]) -> None:
    print(f"{'variant':34} {'n':>5} {'/s':>5} | {'obs p50':>8} {'obs p95':>8} | ", end="")
    print(f"{'promise':>8} {'(its p95)':>9} | {'off ms':>7} {'off':>6} {'kept':>6}")
    for row in rows:
        print(
            f"{row.variant:34} {row.queries:5} {row.per_s:5.1f} | {row.observed_p50_ms:8.3f} "
            f"{row.observed_p95_ms:8.3f} | {row.promised_ms:8.3f} {row.promised_p95_ms:9.3f} | {row.off_ms:+7.3f} "
            f"{row.off_share:+6.1%} {row.kept:6.1%} {'ok' if row.is_within else 'OFF'}"
        )
    print(f"{sum(row.is_within for row in rows)} of {len(rows)} within {WITHIN_SHARE:.0%} or {WITHIN_MS} ms at p95")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS, help="comma-separated, of the demo's family")
    parser.add_argument("--seconds", type=float, default=8.0, help="of load per variant")
    parser.add_argument("--load", type=float, default=0.15, help="share of what a variant can do")
    parser.add_argument("--budget", type=float, default=3.0, help="seconds of profiling per variant")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--url", help="use a running system that serves the models already")
    given = parser.parse_args()
    models = given.models.split(",")
    if given.url:
        with Client(given.url) as client:
            rows = _all(client, models, given)
    else:
        with own_system(budget_s=given.budget) as client:
            register(client, models)
            rows = _all(client, models, given)
    show(rows)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0 if rows and all(row.is_within for row in rows) else 1


def _all(client: Client, models: list[str], given: argparse.Namespace) -> list[Row]:
    rng = random.Random(given.seed)
    variants = [v for model in models for v in client.variants(model=model) if v.is_current and v.state == "READY"]
    return [measure(client, variant, given.seconds, given.load, rng) for variant in variants]


if __name__ == "__main__":
    sys.exit(main())
