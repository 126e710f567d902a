"""Batches and answers as they pass between a controller and a worker of one process: handed over, not written and read.

They say what `worker.proto` says of the plain case: tensors whose elements have one size, and an answer for every
query. Whatever is not plain (text, traces, a query that runs alone, a failure) goes as a message, here as anywhere.
"""

from __future__ import annotations

from typing import NamedTuple

from infaas.domain.tensor import Datatype
from infaas.rpc.hop.columns import Column
from infaas.rpc.hop.frames import LIMIT_BYTES, FrameError


class Inputs(NamedTuple):
    """What batches of queries with one signature have in common."""

    names: tuple[str, ...]
    datatypes: tuple[Datatype, ...]
    tails: tuple[tuple[int, ...], ...]
    """The dimensions after the first."""


class GivenBatch(NamedTuple):
    number: int
    instance: str
    ids: tuple[int, ...]
    """Of each query, like the next two."""
    items: tuple[int, ...]
    deadlines: tuple[float, ...]
    """On the process's monotonic clock."""
    inputs: Inputs
    data: tuple[memoryview, ...]
    """Of each input, those of all queries one after the other."""
    outputs: tuple[str, ...]
    """Requested, in order; empty: all."""

    def checked_size(self) -> int:
        """In bytes. Raises FrameError when it is larger than a frame may be."""
        size = max(1, sum(map(len, self.data)))
        if size > LIMIT_BYTES:
            raise FrameError(f"a batch of {size} bytes; {LIMIT_BYTES} can be sent at once")
        return size


class GivenAnswer(NamedTuple):
    """Of a batch that ran, to all of its queries."""

    number: int
    ids: tuple[int, ...]
    columns: tuple[Column, ...]
    staged_s: float
    run_s: float
    run_items: int
    """Of the whole run, where batches of several controllers shared it; 0: its own alone."""
    others: int
    """Items of other controllers that the instance holds."""

    def checked_size(self) -> int:
        """In bytes; the worker bounds what it answers. Tensors without elements have to be taken, too."""
        return max(1, sum([len(column.data) for column in self.columns]))


Given = GivenBatch | GivenAnswer
