"""prometheus-client's own parsers over `/metrics`, unchanged: the text format and OpenMetrics.

python prometheus_scrape.py --url http://HOST:PORT/metrics      prints what is wrong, and ends with 1 if anything is

Every family must say its type and what it is, be in base units, keep its counters' and histograms' rules, and have
labels of a known, bounded set.
"""

from __future__ import annotations

import argparse
import math
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
UNITS = ("_seconds", "_bytes", "_ratio", "_usd", "_total", "_info", "_usd_total")
COUNTED = ("_in_flight", "_size", "_replicas", "_waiting", "_tasks", "_tenants", "_processes")
STATES = ("_up", "_leader")
CREATED = "_created"
"""When a series began: the text format's own companion of counters and histograms, in seconds since the epoch."""
NOT_BASE = ("_ms", "_milliseconds", "_microseconds", "_percent", "_kb", "_mb")
LABELS = {"model", "variant", "code", "reason", "priority", "kind", "worker", "task", "state", "action", "version"}
LABELS |= {"direction", "python", "le"}
MOST_SERIES = 2_000


def fetch(url: str, accept: str) -> tuple[str, str]:
    request = urllib.request.Request(url, headers={"accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers["content-type"], answer.read().decode()


def problems_of(families: Iterable[Any]) -> Iterator[str]:
    for family in families:
        if family.type not in ("counter", "gauge", "histogram", "info"):
            yield f"{family.name} has type {family.type!r}"
        if not family.documentation:
            yield f"{family.name} does not say what it is"
        if not family.name.startswith("infaas_"):
            yield f"{family.name} is not ours"
        if family.name.endswith(NOT_BASE):
            yield f"{family.name} is not in base units"
        if family.type in ("gauge", "histogram") and not family.name.endswith((*UNITS, *STATES, *COUNTED, CREATED)):
            yield f"{family.name} names neither a unit nor a count"
        yield from sample_problems(family)


def sample_problems(family: Any) -> Iterator[str]:
    if len(family.samples) > MOST_SERIES:
        yield f"{family.name} has {len(family.samples)} series"
    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    counts: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in family.samples:
        unknown = set(sample.labels) - LABELS
        if unknown:
            yield f"{sample.name} has labels {sorted(unknown)}"
        if math.isnan(sample.value):
            yield f"{sample.name} is NaN"
        key = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
        if sample.name.endswith("_bucket"):
            buckets.setdefault(key, []).append((float(sample.labels["le"]), sample.value))
        elif family.type == "histogram" and sample.name.endswith("_count"):
            counts[key] = sample.value
        elif family.type == "counter" and sample.value < 0:
            yield f"{sample.name} is negative"
    for key, found in buckets.items():
        found.sort()
        values = [value for _, value in found]
        if values != sorted(values) or not math.isinf(found[-1][0]) or found[-1][1] != counts.get(key):
            yield f"{family.name}{dict(key)}: the buckets do not add up"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    options = parser.parse_args()
    failed = []
    text_type, text = fetch(options.url, "text/plain")
    open_type, opened = fetch(options.url, OPENMETRICS)
    if not text_type.startswith("text/plain") or not open_type.startswith("application/openmetrics-text"):
        failed.append(f"content types {text_type!r}, {open_type!r}")
    families = list(parse_text(text))
    failed += problems_of(families)
    failed += problems_of(family for family in parse_openmetrics(opened))
    print(f"{len(families)} families, {sum(len(family.samples) for family in families)} samples")
    for family in families:
        print(f"family {family.name} {family.type}")
    for problem in failed:
        print(f"PROBLEM {problem}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
