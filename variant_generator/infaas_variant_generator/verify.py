"""Whether a transformed graph still answers like the original: pure comparisons of two sets of outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXACT_RELATIVE = 1e-3
EXACT_ABSOLUTE = 1e-4
"""Of the output's largest value: fusing operators reorders sums, and that is all it may do."""
EXACT_DISAGREEMENT = 1e-3
"""Share of integer answers that may differ, because a tie between two scores may fall the other way."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """`problem` None: the answers are the same as far as asked for."""

    max_abs_error: float
    disagreement: float
    """The largest share of differing values (exact ones) or relative root mean square error (floats) of any output."""
    problem: str | None


def compare_exactly(original: Arrays, made: Arrays) -> Comparison:
    """All but rounding must agree."""
    return _compare(original, made, is_exact=True, tolerance=0.0)


def compare_loosely(original: Arrays, made: Arrays, tolerance: float) -> Comparison:
    """For lossy recipes without an evaluation set: each output's relative error, or share of changed values, is held
    against the tolerance."""
    return _compare(original, made, is_exact=False, tolerance=tolerance)


def why_score_lost(original: float, made: float, tolerance: float, metric: str) -> str | None:
    """Why a lossy recipe lost too much on the evaluation set; None when it did not."""
    lost = original - made
    if lost <= tolerance:
        return None
    return f"{metric} falls from {original:.4f} to {made:.4f}: {lost:.4f} lost, {tolerance:g} allowed"


def _compare(original: Arrays, made: Arrays, *, is_exact: bool, tolerance: float) -> Comparison:
    worst_error, worst_share, problems = 0.0, 0.0, []
    for name, want in original.items():
        got = made.get(name)
        if got is None or got.shape != want.shape or got.dtype.kind != want.dtype.kind:
            shown = "nothing" if got is None else f"{got.dtype}{list(got.shape)}"
            problems.append(f"output {name!r} should be {want.dtype}{list(want.shape)}; it is {shown}")
            continue
        if want.dtype.kind != "f":
            share = float(np.mean(got != want)) if want.size else 0.0
            allowed = EXACT_DISAGREEMENT if is_exact else max(tolerance, EXACT_DISAGREEMENT)
            worst_share = max(worst_share, share)
            if share > allowed:
                problems.append(f"output {name!r} differs in {share:.2%} of its values, {allowed:.2%} allowed")
            continue
        error, share, problem = _compare_floats(name, want, got, is_exact=is_exact, tolerance=tolerance)
        worst_error, worst_share = max(worst_error, error), max(worst_share, share)
        if problem:
            problems.append(problem)
    return Comparison(worst_error, worst_share, "; ".join(problems) or None)


def _compare_floats(
    name: str, want: NDArray[Any], got: NDArray[Any], *, is_exact: bool, tolerance: float
) -> tuple[float, float, str | None]:
    """The largest absolute error, the relative root mean square error, and what is wrong."""
    if want.size == 0:
        return 0.0, 0.0, None
    finite = np.isfinite(want) & np.isfinite(got)
    same_elsewhere = np.array_equal(want[~finite], got[~finite], equal_nan=True)
    a, b = want[finite].astype(np.float64), got[finite].astype(np.float64)
    difference = np.abs(a - b)
    error = float(difference.max(initial=0.0))
    scale = float(np.abs(a).max(initial=0.0))
    size = float(np.sqrt(np.mean(a**2))) if a.size else 0.0
    share = float(np.sqrt(np.mean(difference**2))) / size if size > 0 else float(error > 0)
    if not same_elsewhere:
        return error, 1.0, f"output {name!r} has infinite or undefined values where the original has others"
    if is_exact and bool(np.any(difference > EXACT_ABSOLUTE * max(scale, 1e-6) + EXACT_RELATIVE * np.abs(a))):
        return error, share, f"output {name!r} differs by up to {error:.3g} where values reach {scale:.3g}"
    if not is_exact and share > tolerance:
        return error, share, f"output {name!r} is off by {share:.1%} (root mean square), {tolerance:.1%} allowed"
    return error, share, None
