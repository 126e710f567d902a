"""What an executor promises, whatever runs the model: ONNX Runtime here, later a GPU or a Triton server far away.

Loading blocks and is called on a loading thread. Running does not: `submit` hands a batch over and returns a future,
and up to `max_in_flight` may be pending at once, so a device or a server can overlap copies and work. A model may offer
to run what is `Brief` where it is. An executor imports its runtime when it first loads something, so that an idle
worker stays small.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Protocol, Self, TypeVar, overload, runtime_checkable

import msgspec
from msgspec.structs import replace

from infaas.domain.query import Code
from infaas.domain.tensor import Datatype
from infaas.domain.variant import Hardware, Isolation, Runtime, Variant
from infaas.errors import InfaasError, UnsupportedError

GROUP = "infaas.executors"
T_co = TypeVar("T_co", covariant=True)


class Value(msgspec.Struct, frozen=True):
    """A tensor's shape and its row-major little-endian bytes (OIP's form)."""

    shape: tuple[int, ...]
    data: bytes | memoryview


class Whole(msgspec.Struct, frozen=True):
    """The tensors of all queries of a batch together: each value holds the queries' rows one after the other, in the
    order of the queries. Only of datatypes whose elements have one size."""

    items: tuple[int, ...]
    """Of each query."""
    values: tuple[Value, ...]
    """In the order of `input_names` or `output_names`; the first dimension of each is all items."""

    def parts(self) -> list[tuple[Value, ...]]:
        """Each query's own values, as views."""
        if not self.values:
            return [() for _ in self.items]
        marks = [0, *accumulate(self.items)]
        columns = []
        for value in self.values:
            data, tail = memoryview(value.data), value.shape[1:]
            row = len(data) // marks[-1] if marks[-1] else 0
            columns.append([Value((end - at, *tail), data[at * row : end * row]) for at, end in pairwise(marks)])
        return list(zip(*columns, strict=True))


class Later(Sequence[T_co]):
    """So many members, which are made when somebody looks at one of them. Any thread may."""

    __slots__ = ("_count", "_made", "_make")

    def __init__(self, count: int, make: Callable[[], Sequence[T_co]]) -> None:
        self._count = count
        self._make = make
        self._made: Sequence[T_co] | None = None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T_co]:
        return iter(self._all())

    @overload
    def __getitem__(self, index: int) -> T_co: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T_co]: ...

    def __getitem__(self, index: int | slice) -> T_co | Sequence[T_co]:
        return self._all()[index]

    def _all(self) -> Sequence[T_co]:
        if self._made is None:
            self._made = self._make()
        return self._made


class QueryIn(msgspec.Struct, frozen=True):
    items: int
    inputs: tuple[Value, ...]
    """In the order of the batch's `input_names`."""


class BatchIn(msgspec.Struct, frozen=True):
    """Queries that share input names, datatypes, shapes beyond the first dimension, and requested outputs."""

    input_names: tuple[str, ...]
    datatypes: tuple[Datatype, ...]
    queries: Sequence[QueryIn]
    outputs: tuple[str, ...] = ()
    """Requested, in order; empty: all."""
    timeout_s: float | None = None
    """From now until the last of the queries is useless; an executor whose work is done elsewhere gives up then."""
    whole: Whole | None = None
    """The same tensors as in `queries`, where they lie together. An executor takes whichever it can use."""

    @classmethod
    def of_whole(
        cls, input_names: tuple[str, ...], datatypes: tuple[Datatype, ...], whole: Whole, outputs: tuple[str, ...] = ()
    ) -> Self:
        """The queries are cut apart only if somebody asks for them."""

        def queries() -> list[QueryIn]:
            return [QueryIn(items, inputs) for items, inputs in zip(whole.items, whole.parts(), strict=True)]

        return cls(input_names, datatypes, Later(len(whole.items), queries), outputs, whole=whole)

    @classmethod
    def joined(cls, batches: Sequence[BatchIn], timeout_s: float) -> BatchIn:
        """One batch of several that are alike, with their queries one after the other."""
        first = batches[0]
        if len(batches) == 1:
            return replace(first, timeout_s=timeout_s)
        wholes = [batch.whole for batch in batches if batch.whole is not None]
        if len(wholes) < len(batches):
            queries = [query for batch in batches for query in batch.queries]
            return replace(first, queries=queries, timeout_s=timeout_s, whole=None)
        items = tuple([count for whole in wholes for count in whole.items])
        values = [
            Value((sum(items), *parts[0].shape[1:]), b"".join([part.data for part in parts]))
            for parts in zip(*[whole.values for whole in wholes], strict=True)
        ]
        joined = cls.of_whole(first.input_names, first.datatypes, Whole(items, tuple(values)), first.outputs)
        return replace(joined, timeout_s=timeout_s)

    @property
    def likeness(self) -> Hashable | None:
        """Equal for batches that may be joined; None: with none."""
        if self.whole is None:
            return None
        tails = tuple([value.shape[1:] for value in self.whole.values])
        return self.input_names, self.datatypes, tails, self.outputs

    @property
    def items(self) -> Sequence[int]:
        """Of each query."""
        return [query.items for query in self.queries] if self.whole is None else self.whole.items


class QueryError(msgspec.Struct, frozen=True):
    """What befell one query of a batch that ran."""

    code: Code
    text: str


class BatchOut(msgspec.Struct, frozen=True):
    """One entry per query, in order: its values in the order of `output_names`, or its own error."""

    output_names: tuple[str, ...]
    datatypes: tuple[Datatype, ...]
    queries: Sequence[tuple[Value, ...] | QueryError]
    run_s: float
    whole: Whole | None = None
    """The same values as in `queries`, where they lie together and no query has an error."""

    @classmethod
    def of_whole(
        cls, output_names: tuple[str, ...], datatypes: tuple[Datatype, ...], whole: Whole, run_s: float
    ) -> Self:
        """The queries' values are cut apart only if somebody asks for them."""
        return cls(output_names, datatypes, Later(len(whole.items), whole.parts), run_s, whole)

    def cut(self, counts: Sequence[int]) -> list[BatchOut]:
        """The answers to batches that were joined, of so many queries each. Raises InfaasError when there are not as
        many answers, or rows, as were asked for."""
        if len(self.queries) != sum(counts):
            raise InfaasError(f"the executor gave {len(self.queries)} answers to {sum(counts)} queries")
        marks = [0, *accumulate(counts)]
        if self.whole is None:
            return [replace(self, queries=self.queries[begin:end]) for begin, end in pairwise(marks)]
        items = self.whole.items
        rows = [0, *accumulate(items)]
        for value in self.whole.values:
            if value.shape[:1] != (rows[-1],):
                raise InfaasError(f"the executor gave shape {list(value.shape)} for {rows[-1]} items")
        found = []
        for begin, end in pairwise(marks):
            values = tuple([_rows_of(value, rows[begin], rows[end]) for value in self.whole.values])
            part = Whole(items[begin:end], values)
            found.append(BatchOut.of_whole(self.output_names, self.datatypes, part, self.run_s))
        return found


def _rows_of(value: Value, begin: int, end: int) -> Value:
    data = memoryview(value.data).cast("B")
    row = len(data) // value.shape[0] if value.shape[0] else 0
    return Value((end - begin, *value.shape[1:]), data[begin * row : end * row])


@dataclass(frozen=True, slots=True)
class Device:
    """Something that runs of an executor compete for."""

    hardware: Hardware
    index: int = 0
    memory_bytes: int | None = None
    """None: the worker's own memory."""


class LoadedModel(Protocol):
    """One instance inside an executor. The worker owns it and calls `close` exactly once."""

    @property
    def max_in_flight(self) -> int:
        """Batches that may be pending at once."""

    def submit(self, batch: BatchIn) -> Future[BatchOut]:
        """Run a batch. Never blocks. The future raises ModelError when the model itself failed, InvalidError when
        the tensors do not fit it, and UnavailableError when the executor has died or is closed; a query that alone is
        to blame for a failure has a `QueryError` in the result instead."""

    def memory_bytes(self) -> int:
        """Held now, as well as the runtime can say."""

    def close(self) -> None:
        """Finish what is pending, then free everything. Blocks; runs on a loading thread."""


@runtime_checkable
class Killable(Protocol):
    """A loaded model that can be ended from outside, whatever it is doing, and that may end by itself."""

    @property
    def ended(self) -> Future[str]:
        """Done once it has ended without having been closed; the result says how, for people."""

    def kill(self, reason: str) -> None:
        """End it now: pending futures raise UnavailableError with the reason. `close` must still follow. Returns
        at once; a second call, or one after the end, changes nothing."""


@runtime_checkable
class Brief(Protocol):
    """A loaded model whose smaller batches are over so soon that whoever has them may as well run them."""

    def is_brief(self, items: int) -> bool: ...

    def run(self, batch: BatchIn) -> BatchOut:
        """Here and now, for as long as it takes; nothing else of it may be pending. Raises what the future of `submit`
        does."""


class Executor(Protocol):
    @property
    def runtime(self) -> Runtime: ...

    @property
    def devices(self) -> tuple[Device, ...]: ...

    def load(self, variant: Variant, artifact: Path) -> LoadedModel:
        """Blocks; may be called from several loading threads at once, and at low priority when the variant has one
        thread: threads that serve are started by the first `submit`, because they inherit the caller's priority.

        Raises ModelError when the artifact cannot be loaded or does not fit the variant, UnsupportedError when this
        executor cannot run such a variant.
        """


class Executors:
    """Executors by runtime, each made when a variant first asks for it."""

    def __init__(
        self,
        factories: dict[str, Callable[[], Executor]] | None = None,
        isolate: Callable[[], Executor] | None = None,
        configured: dict[str, Callable[[], Executor]] | None = None,
    ) -> None:
        """`configured`: those that take settings, in place of the ones found by entry point."""
        self._configured = configured or {}
        self._factories = factories
        self._isolate = isolate or _no_isolation
        self._isolating: Executor | None = None
        self._made: dict[str, Executor] = {}
        self._lock = threading.Lock()

    def get(self, runtime: Runtime) -> Executor:
        """Blocks while the runtime is imported. Raises UnsupportedError when nothing installed runs it."""
        with self._lock:
            found = self._made.get(runtime.value)
            if found is None:
                found = self._make(runtime.value)
                self._made[runtime.value] = found
            return found

    def of(self, variant: Variant) -> Executor:
        """The executor that loads this variant: its runtime's, or the one that gives each instance a process, where
        the runtime's is then imported. Raises as `get` does."""
        if variant.isolation is Isolation.PROCESS:
            with self._lock:
                if self._isolating is None:
                    self._isolating = self._isolate()
                return self._isolating
        return self.get(variant.runtime)

    def _make(self, name: str) -> Executor:
        if name in self._configured:
            return self._configured[name]()
        if self._factories is not None and name in self._factories:
            return self._factories[name]()
        if self._factories is None:
            for entry in entry_points(group=GROUP, name=name):
                made: Executor = entry.load()()
                return made
        raise UnsupportedError(f"no executor for runtime {name!r} is installed in this worker")


def _no_isolation() -> Executor:
    raise UnsupportedError("this process runs one instance already; it cannot isolate another")
