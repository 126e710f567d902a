"""Runs batches the way a worker does: bytes of single queries in, bytes of single answers out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from infaas.domain.tensor import TensorSpec
from infaas_variant_generator.arrays import Rows, as_session_input, to_array, to_bytes

MAX_QUERIES = 256
"""Different queries to take turns, so that no input stays warm in a way that real ones would not."""


@dataclass(slots=True)
class Runner:
    """Holds encoded queries and, once it has one, a session."""

    specs: tuple[TensorSpec, ...]
    shapes: dict[str, tuple[int, ...]]
    queries: list[dict[str, bytes]]
    session: Any = None
    outputs: tuple[str, ...] = ()
    at: int = 0

    @classmethod
    def prepare(cls, rows: Rows, specs: Sequence[TensorSpec]) -> Runner:
        count = min(rows.count, MAX_QUERIES)
        queries = [{s.name: to_bytes(rows.inputs[s.name][row : row + 1]) for s in specs} for row in range(count)]
        shapes = {s.name: (1, *rows.inputs[s.name].shape[1:]) for s in specs}
        return cls(tuple(specs), shapes, queries)

    def with_session(self, session: Any) -> Runner:
        return replace(self, session=session, outputs=tuple(output.name for output in session.get_outputs()))

    def timed(self, batch: int) -> float:
        """Seconds from the queries' bytes to the answers' bytes."""
        chosen = self._next(batch)
        begin = time.perf_counter()
        self._serve(chosen)
        return time.perf_counter() - begin

    def run(self, batch: int) -> list[list[bytes]]:
        return self._serve(self._next(batch))

    def _next(self, batch: int) -> list[dict[str, bytes]]:
        start, count = self.at, len(self.queries)
        self.at = (start + batch) % count
        return [self.queries[(start + offset) % count] for offset in range(batch)]

    def _serve(self, chosen: list[dict[str, bytes]]) -> list[list[bytes]]:
        feeds = {}
        for spec in self.specs:
            parts = [to_array(query[spec.name], spec.datatype, self.shapes[spec.name]) for query in chosen]
            feeds[spec.name] = as_session_input(parts[0] if len(parts) == 1 else np.concatenate(parts))
        results = self.session.run(self.outputs, feeds)
        return [[to_bytes(result[row : row + 1]) for result in results] for row in range(len(chosen))]
