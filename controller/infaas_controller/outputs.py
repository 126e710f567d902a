"""What the queries of one batch are answered with: columns that hold all of their outputs, one place for each query."""

from __future__ import annotations

from infaas.domain.tensor import Tensor
from infaas.rpc.hop.columns import Column


class Outputs:
    __slots__ = ("columns", "problem")

    def __init__(self, columns: tuple[Column, ...], problem: str = "") -> None:
        """`problem`: why the columns cannot be read."""
        self.columns = columns
        self.problem = problem

    def tensors(self, place: int) -> tuple[Tensor, ...]:
        """One query's, as views of the answer's bytes. Raises ValueError when they cannot be read."""
        if self.problem:
            raise ValueError(self.problem)
        return tuple([Tensor(column.name, column.datatype, *column.part(place)) for column in self.columns])
