"""What a recipe is, and how the installed ones are found.

A recipe is one file and one entry point in the group `infaas.recipes`. Its class takes no arguments and must be cheap
to import: `transform` runs in a child process and imports its tools there.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from infaas.domain.variant import Hardware, Precision, Runtime
from infaas.errors import InfaasError, NotFoundError
from infaas_variant_generator.facts import GraphFacts, HardwareFacts
from infaas_variant_generator.plan import Transform

GROUP = "infaas.recipes"


class DoesNotApplyError(InfaasError):
    """Only trying showed that the recipe has nothing to do with this graph: recorded as skipped, not as failed."""


@dataclass(frozen=True, slots=True)
class Materials:
    """What a recipe may use beside the graph."""

    hardware: HardwareFacts
    calibration: dict[str, Any]
    """Arrays of inputs to learn from, one row per item; empty when there are none."""
    why_uncalibrated: str
    """Why there are none."""
    batch: int
    """How many items one run takes at most; the only number when the batch is fixed."""
    is_fixed: bool


class Recipe(Protocol):
    prefix: str
    """First part of the recipe's name, unique among recipes: `ort-fp32`."""
    runtime: Runtime
    hardware: Hardware
    precision: Precision
    is_exact: bool
    """Whether its answers must equal the original's but for rounding; else it may lose score within the tolerance."""

    def why_not(self, facts: GraphFacts, hardware: HardwareFacts) -> str | None:
        """Why it does not apply to such a graph, or gains nothing on such hardware; None when it does."""

    def transform(self, source: Path, target: Path, materials: Materials) -> None:
        """Write the graph to `target`; other files may be left beside it. Called in a child process.

        Raises DoesNotApplyError, or whatever its tools raise.
        """


def load_recipe(entry: str) -> Recipe:
    """Raises NotFoundError for a name that no entry point has."""
    for point in entry_points(group=GROUP):
        if point.name == entry:
            recipe: Recipe = point.load()()
            return recipe
    raise NotFoundError(f"no recipe is installed under the name {entry!r}")


def installed_transforms(facts: GraphFacts, hardware: HardwareFacts) -> tuple[Transform, ...]:
    """Every installed recipe and whether it applies to the graph on this hardware."""
    found = []
    for name in sorted({point.name for point in entry_points(group=GROUP)}):
        recipe = load_recipe(name)
        found.append(
            Transform(
                entry=name,
                prefix=recipe.prefix,
                runtime=recipe.runtime,
                hardware=recipe.hardware,
                precision=recipe.precision,
                not_applicable=recipe.why_not(facts, hardware),
            )
        )
    return tuple(found)
