"""Scores a variant's answers by the order's metric."""

from __future__ import annotations

from infaas.domain.variant import Accuracy
from infaas.metrics import load_metric
from infaas_variant_generator.arrays import Arrays, Rows

BOOTSTRAP_SEED = 20210714


def score(outputs: Arrays, rows: Rows, metric: str) -> Accuracy | None:
    """None when there are no right answers to compare with. Raises InvalidError when they cannot be compared."""
    if rows.is_random or not rows.answers:
        return None
    return load_metric(metric).evaluate(outputs, rows.answers, seed=BOOTSTRAP_SEED)
