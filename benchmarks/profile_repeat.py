"""How well repeated profiling of a variant agrees with itself.

    python benchmarks/profile_repeat.py [--models digits-svm,digits-mlp] [--times 3] [--budget 3] [--json FILE]

Brings up a private system and registers every model several times under different names, one after another, so that
each of its variants is made and measured anew by the real profiler on cores lent by the real worker. Per variant and
batch size: the medians of all times, and how far the highest is above the lowest: within 10 % or 5 us. What was
measured once only is shown and not counted. Exit status 1 when another one is further apart, or none was compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from own_system import own_system, register

from infaas.client import Client

MODELS = "digits-cnn-large,digits-cnn-medium,digits-svm,digits-mlp"
WITHIN_SHARE = 0.10
WITHIN_S = 5e-6


@dataclass(frozen=True)
class Row:
    model: str
    recipe: str
    batch: int
    p50_ms: tuple[float, ...]
    apart_share: float
    is_within: bool | None
    """None: it was measured once only, and there is nothing to compare."""


def profiles(client: Client, models: list[str], times: int) -> dict[tuple[str, str, int], list[float]]:
    """Medians in seconds by model, recipe and batch size."""
    found: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for number in range(times):
        for model in models:
            register(client, [model], suffix=f"-{number}")
            for variant in client.variants(model=f"{model}-{number}"):
                for point in variant.latency:
                    found[model, variant.recipe, point.batch].append(point.p50_s)
    return found


def rows_of(found: dict[tuple[str, str, int], list[float]]) -> list[Row]:
    rows = []
    for (model, recipe, batch), medians in sorted(found.items()):
        apart_s = max(medians) - min(medians)
        share = apart_s / min(medians)
        is_within = None if len(medians) < 2 else share <= WITHIN_SHARE or apart_s <= WITHIN_S
        rows.append(Row(model, recipe, batch, tuple(1e3 * one for one in medians), share, is_within))
    return rows


def show(rows: list[Row]) -> None:
    print(f"{'model':20} {'recipe':16} {'batch':>5} {'apart':>7}  p50 of each time, ms")
    for row in rows:
        medians = "  ".join(f"{one:.4f}" for one in row.p50_ms)
        verdict = {True: "", False: "  OFF", None: "  (measured once)"}[row.is_within]
        print(f"{row.model:20} {row.recipe:16} {row.batch:5} {row.apart_share:7.1%}  {medians}{verdict}")
    compared = [row for row in rows if row.is_within is not None]
    print(
        f"{sum(row.is_within is True for row in rows)} of {len(compared)} within {WITHIN_SHARE:.0%} "
        f"or {1e6 * WITHIN_S:.0f} us; {len(rows) - len(compared)} measured once and not compared"
    )


def is_kept(rows: Sequence[Row]) -> bool:
    verdicts = [row.is_within for row in rows if row.is_within is not None]
    return bool(verdicts) and all(verdicts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS, help="comma-separated, of the demo's family")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--budget", type=float, default=3.0, help="seconds of profiling per variant")
    parser.add_argument("--json", type=Path, help="write the rows here")
    given = parser.parse_args()
    with own_system(budget_s=given.budget) as client:
        rows = rows_of(profiles(client, given.models.split(","), given.times))
    show(rows)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0 if is_kept(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
