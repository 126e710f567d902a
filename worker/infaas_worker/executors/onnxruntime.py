"""ONNX Runtime on the CPU: one owned thread per instance, one batch after another. Brief ones run where they come from.

Input bytes are looked at in place, those of several queries too where they lie together; else one concatenation gathers
them. Outputs are given as they came, and as views per query. The session is opened exactly as the profiler opens it
(`infaas.runtimes`), and a session that ended up on anything but the CPU provider is refused instead of used.
"""

from __future__ import annotations

import importlib
import queue
import threading
import time
from concurrent.futures import Future
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from msgspec.structs import replace

from infaas.domain.tensor import Datatype
from infaas.domain.variant import Hardware, Isolation, Runtime, Variant
from infaas.errors import InfaasError, InvalidError, ModelError, UnavailableError, UnsupportedError
from infaas.runtimes.onnxruntime_options import PROVIDERS, open_session
from infaas_worker.decide.brief import brief_items
from infaas_worker.executors.base import BatchIn, BatchOut, Device, LoadedModel, QueryError, QueryIn, Value, Whole
from infaas_worker.executors.tensors import Array, datatype_of, to_array, to_value

_SMALL_BYTES = 4 * 2**20
"""Of an artifact; a larger one is not looked into, its runs are not brief."""
_ONNX_TYPES = {
    "tensor(bool)": Datatype.BOOL,
    "tensor(int8)": Datatype.INT8,
    "tensor(int16)": Datatype.INT16,
    "tensor(int32)": Datatype.INT32,
    "tensor(int64)": Datatype.INT64,
    "tensor(uint8)": Datatype.UINT8,
    "tensor(uint16)": Datatype.UINT16,
    "tensor(uint32)": Datatype.UINT32,
    "tensor(uint64)": Datatype.UINT64,
    "tensor(float16)": Datatype.FP16,
    "tensor(float)": Datatype.FP32,
    "tensor(double)": Datatype.FP64,
    "tensor(string)": Datatype.BYTES,
}


class OnnxRuntimeExecutor:
    """Entry point `onnxruntime` of the group `infaas.executors`. Making one imports the runtime."""

    def __init__(self) -> None:
        importlib.import_module("onnxruntime")

    @property
    def runtime(self) -> Runtime:
        return Runtime.ONNXRUNTIME

    @property
    def devices(self) -> tuple[Device, ...]:
        return (Device(Hardware.CPU),)

    def load(self, variant: Variant, artifact: Path) -> LoadedModel:
        if variant.hardware is not Hardware.CPU:
            raise UnsupportedError(
                f"{variant.name} is for {variant.hardware.value}; this executor runs on the CPU only"
            )
        if variant.isolation is not Isolation.THREAD:
            raise UnsupportedError(
                f"{variant.name} asks for isolation {variant.isolation.value!r}, this executor has threads"
            )
        before = psutil.Process().memory_info().rss
        try:
            session = open_session(str(artifact), variant.threads)
        except Exception as error:  # ONNX Runtime's errors share no base
            raise ModelError(f"ONNX Runtime cannot load {variant.name}: {_first_line(error)}") from error
        providers = tuple(session.get_providers())
        if providers != PROVIDERS:
            raise ModelError(f"{variant.name} would run on {', '.join(providers)} instead of {', '.join(PROVIDERS)}")
        session.disable_fallback()
        graph = _Graph(variant, session)
        grown = psutil.Process().memory_info().rss - before
        memory_bytes = max(grown, artifact.stat().st_size)
        return OnnxRuntimeModel(graph, memory_bytes=memory_bytes, brief_items=_brief_items(variant, artifact))


class OnnxRuntimeModel:
    """A session and the one thread that may use it."""

    max_in_flight = 1

    def __init__(self, graph: _Graph, *, memory_bytes: int, brief_items: int = 0) -> None:
        """`brief_items`: up to so many are run by whoever has them."""
        self._graph: _Graph | None = graph
        self._brief_items = brief_items
        self._memory_bytes = memory_bytes
        self._inbox: queue.SimpleQueue[tuple[BatchIn, Future[BatchOut]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def submit(self, batch: BatchIn) -> Future[BatchOut]:
        future: Future[BatchOut] = Future()
        with self._lock:
            if self._is_closed:
                future.set_exception(UnavailableError("the instance has been unloaded"))
            else:
                if self._thread is None:
                    self._thread = self._start(self._graph)
                self._inbox.put((batch, future))
        return future

    def is_brief(self, items: int) -> bool:
        return items <= self._brief_items

    def run(self, batch: BatchIn) -> BatchOut:
        if self._is_closed or self._graph is None:
            raise UnavailableError("the instance has been unloaded")
        return _run(self._graph, batch)

    def memory_bytes(self) -> int:
        return 0 if self._graph is None else self._memory_bytes

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
        self._inbox.put(None)
        if self._thread is not None:
            self._thread.join()
        self._graph = None

    def _start(self, graph: _Graph | None) -> threading.Thread:
        """Not while loading: a thread inherits the priority of the one that starts it."""
        name = f"run-{graph.name}"[:60] if graph else "run"
        thread = threading.Thread(target=self._serve, args=(graph,), name=name, daemon=True)
        thread.start()
        return thread

    def _serve(self, graph: _Graph) -> None:
        while (job := self._inbox.get()) is not None:
            batch, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = _run(graph, batch)
            except InfaasError as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del job, batch, future


class _Graph:
    """A session with what it takes and gives, and the way from a batch's bytes to its answers."""

    def __init__(self, variant: Variant, session: Any) -> None:
        self.name = variant.name
        self._session = session
        self._fixed = variant.fixed_batch
        self._limit = variant.max_batch_size
        self._portions = [0, *(variant.portion(items) for items in range(1, self._limit + 1))]
        """How many of a batch's items one call is given, by how many there are."""
        self._inputs = {one.name: _ONNX_TYPES.get(one.type) for one in session.get_inputs()}
        self._outputs = tuple(one.name for one in session.get_outputs())
        self._check(variant)

    def run(self, batch: BatchIn) -> BatchOut:
        started = time.perf_counter()
        names = self._requested(batch)
        items = tuple(batch.items)
        try:
            arrays = self._infer(self._feed(batch), sum(items), names)
        except (InvalidError, ModelError) as error:
            if len(items) == 1:
                raise
            return self._run_alone(batch, names, error, started)
        return _together(names, arrays, items, started)

    def _run_alone(self, batch: BatchIn, names: tuple[str, ...], cause: InfaasError, started: float) -> BatchOut:
        """Each query once by itself, so that one that makes the model fail hurts nobody else."""
        arrays: list[Array] | None = None
        outcomes: list[tuple[Value, ...] | QueryError] = []
        for query in batch.queries:
            try:
                arrays = self._infer(self._feed(replace(batch, queries=(query,), whole=None)), query.items, names)
            except (InvalidError, ModelError) as error:
                outcomes.append(QueryError(error.code, error.text))
            else:
                outcomes.append(tuple([to_value(array) for array in arrays]))
        if arrays is None:
            raise cause
        return BatchOut(names, _datatypes(arrays), outcomes, time.perf_counter() - started)

    def _feed(self, batch: BatchIn) -> dict[str, Array]:
        feed: dict[str, Array] = {}
        for index, (name, datatype) in enumerate(zip(batch.input_names, batch.datatypes, strict=True)):
            if name not in self._inputs:
                raise InvalidError(f"{self.name} has no input {name!r}; it has {', '.join(self._inputs)}")
            if self._inputs[name] is not datatype:
                want = self._inputs[name]
                raise InvalidError(
                    f"input {name!r} is {datatype.value}, {self.name} takes {want.value if want else '?'}"
                )
            if batch.whole is not None:
                feed[name] = _rows(name, datatype, batch.whole.values[index], sum(batch.whole.items))
            else:
                feed[name] = self._gather(name, [_part(name, datatype, query, index) for query in batch.queries])
        missing = [name for name in self._inputs if name not in feed]
        if missing:
            raise InvalidError(f"{self.name} lacks input {', '.join(repr(name) for name in missing)}")
        return feed

    def _gather(self, name: str, parts: list[Array]) -> Array:
        if len(parts) == 1:
            return parts[0]
        try:
            return np.concatenate(parts)
        except ValueError as error:
            shapes = ", ".join(str(list(part.shape)) for part in parts)
            raise InvalidError(f"input {name!r}: shapes {shapes} do not go into one batch") from error

    def _infer(self, feed: dict[str, Array], items: int, names: tuple[str, ...]) -> list[Array]:
        if items < 1:
            raise InvalidError(f"{self.name}: a batch needs at least one item")
        if items > self._limit and self._fixed is None:
            raise InvalidError(f"{self.name} takes at most {self._limit} items, the batch has {items}")
        portion = self._portions[items] if self._fixed is None else self._fixed
        if portion == items:
            return self._call(feed, items, names)
        portions = self._infer_portions(feed, items, portion, names)
        if len(portions) == 1:
            return portions[0]
        try:
            return [np.concatenate(arrays) for arrays in zip(*portions, strict=True)]
        except ValueError as error:
            if self._fixed is not None:
                raise ModelError(f"{self.name} gave outputs that do not go together: {_first_line(error)}") from error
            self._portions = list(range(self._limit + 1))  # how wide they are depends on all that is run together
            return self._call(feed, items, names)

    def _infer_portions(
        self, feed: dict[str, Array], items: int, portion: int, names: tuple[str, ...]
    ) -> list[list[Array]]:
        """A graph that takes exactly so many items gets them in such portions, the last filled up with its last item;
        one that is slower in large batches, in portions that it is fastest in."""
        portions: list[list[Array]] = []
        for at in range(0, items, portion):
            count = min(portion, items - at)
            part = {name: array[at : at + count] for name, array in feed.items()}
            size = count if self._fixed is None else self._fixed
            if count < size:
                part = {name: np.concatenate([a, np.repeat(a[-1:], size - count, axis=0)]) for name, a in part.items()}
            portions.append([array[:count] for array in self._call(part, size, names)])
        return portions

    def _call(self, feed: dict[str, Array], items: int, names: tuple[str, ...]) -> list[Array]:
        try:
            arrays = self._session.run(names, feed)
        except Exception as error:  # ONNX Runtime's errors share no base
            raise ModelError(f"{self.name} failed: {_first_line(error)}") from error
        for name, array in zip(names, arrays, strict=True):
            if not isinstance(array, np.ndarray):
                raise ModelError(f"output {name!r} of {self.name} is a {type(array).__name__}, not a tensor")
            if array.ndim == 0 or array.shape[0] != items:
                raise ModelError(
                    f"output {name!r} of {self.name} has shape {list(array.shape)} for a batch of {items}: "
                    "its first dimension is not the batch dimension"
                )
        return list(arrays)

    def _requested(self, batch: BatchIn) -> tuple[str, ...]:
        if not batch.outputs:
            return self._outputs
        unknown = [name for name in batch.outputs if name not in self._outputs]
        if unknown:
            raise InvalidError(f"{self.name} has no output {unknown[0]!r}; it has {', '.join(self._outputs)}")
        return batch.outputs

    def _check(self, variant: Variant) -> None:
        """The graph must be the variant's, or queries that were checked against the task would fail one by one."""
        problems = [
            f"input {spec.name!r} is {spec.datatype.value}, {_word(self._inputs.get(spec.name))} in the graph"
            for spec in variant.inputs
            if self._inputs.get(spec.name) is not spec.datatype
        ]
        wanted = {spec.name for spec in variant.inputs}
        problems += [
            f"the graph has an input {name!r}, the variant has not" for name in self._inputs if name not in wanted
        ]
        problems += [
            f"the graph lacks output {spec.name!r}" for spec in variant.outputs if spec.name not in self._outputs
        ]
        if problems:
            raise ModelError(f"the artifact of {variant.name} does not fit it: {'; '.join(problems)}")


def _run(graph: _Graph, batch: BatchIn) -> BatchOut:
    """Raises InfaasError: whatever else goes wrong belongs to this batch, and the next one is served."""
    try:
        return graph.run(batch)
    except InfaasError:
        raise
    except Exception as error:
        raise ModelError(f"{graph.name} failed: {_first_line(error)}") from error


def _brief_items(variant: Variant, artifact: Path) -> int:
    """Up to how many items a batch is brief, whatever its tensors hold: 0 where a run may take longer than the profile
    says, because tensors may be of any size, or the graph may go round in loops, or several threads have to meet."""
    is_fixed = all(
        spec.datatype is not Datatype.BYTES and min(spec.shape[1:], default=1) >= 0 for spec in variant.inputs
    )
    if not is_fixed or variant.threads != 1 or artifact.stat().st_size > _SMALL_BYTES:
        return 0
    items = brief_items(variant.profile, variant.max_batch_size)
    return items if items and is_straight(artifact) else 0


def is_straight(artifact: Path) -> bool:
    """Whether every node of a graph runs exactly once: none has a graph inside (If, Loop, Scan and what is made of
    them)."""
    import onnx  # seldom needed, and not small

    model = onnx.load(str(artifact), load_external_data=False)
    inside = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return all(attribute.type not in inside for node in nodes for attribute in node.attribute)


def _together(names: tuple[str, ...], arrays: list[Array], items: tuple[int, ...], started: float) -> BatchOut:
    """The answer of a run that all queries shared."""
    datatypes = _datatypes(arrays)
    if Datatype.BYTES not in datatypes:
        whole = Whole(items, tuple([to_value(array) for array in arrays]))
        return BatchOut.of_whole(names, datatypes, whole, time.perf_counter() - started)
    marks = [0, *accumulate(items)]
    queries = [tuple([to_value(array[begin:end]) for array in arrays]) for begin, end in pairwise(marks)]
    return BatchOut(names, datatypes, queries, time.perf_counter() - started)


def _datatypes(arrays: list[Array]) -> tuple[Datatype, ...]:
    return tuple([datatype_of(array.dtype) for array in arrays])


def _part(name: str, datatype: Datatype, query: QueryIn, index: int) -> Array:
    if index >= len(query.inputs):
        raise InvalidError(f"a query has {len(query.inputs)} inputs, input {name!r} is number {index + 1}")
    return _rows(name, datatype, query.inputs[index], query.items)


def _rows(name: str, datatype: Datatype, value: Value, items: int) -> Array:
    array = to_array(name, datatype, value)
    if array.ndim == 0 or array.shape[0] != items:
        raise InvalidError(f"input {name!r} has shape {list(array.shape)}, a query of {items} items starts with that")
    return array


def _word(datatype: Datatype | None) -> str:
    return "absent" if datatype is None else datatype.value


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:500]
