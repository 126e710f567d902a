"""What every executor must do, on real graphs. A new executor is one more column."""

from __future__ import annotations

import gc
import math
import struct
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from infaas_worker.executors.base import (
    BatchIn,
    BatchOut,
    Executor,
    Executors,
    LoadedModel,
    QueryError,
    QueryIn,
    Value,
    Whole,
)
from infaas_worker.executors.isolated import IsolatedExecutor
from infaas_worker.executors.onnxruntime import OnnxRuntimeExecutor
from infaas_worker.executors.sample import open_sizes, sample, warm_up_sizes
from infaas_worker.executors.triton import TritonExecutor
from triton_models import attached

from infaas.domain.query import Code
from infaas.domain.tensor import Datatype
from infaas.domain.variant import Hardware, Isolation, Runtime, Variant
from infaas.errors import InvalidError, ModelError, UnavailableError, UnsupportedError
from infaas.testing import graphs
from infaas.testing.builders import a_profile
from infaas.testing.triton import TritonProcess

WAIT_S = 60.0


@dataclass(frozen=True)
class Column:
    """One executor under test: how it is made, how a graph becomes its artifact, and where its nature shows."""

    make: Callable[[], Executor]
    runtime: Runtime
    hardware: tuple[Hardware, ...]
    write: Callable[[graphs.Graph, Path], Path]
    held: Callable[[Any], Any]
    """What a loaded model must let go of when it is closed."""
    refused: tuple[dict[str, Any], ...]
    """Facts of variants that it cannot run."""
    is_text_only: bool = True
    """Whether BYTES must be UTF-8; else they are handed on as they are."""
    isolation: Isolation = Isolation.THREAD
    is_whole: bool = False
    """Whether it is given what lies together as such, as it comes from a controller."""


@pytest.fixture(
    params=[
        "onnxruntime",
        "onnxruntime_whole",
        "isolated",
        "isolated_whole",
        pytest.param("triton", marks=pytest.mark.long),
    ]
)
def column(request: pytest.FixtureRequest) -> Column:
    if request.param == "triton":
        return request.getfixturevalue("triton_column")
    is_whole = request.param.endswith("_whole")
    if request.param.startswith("isolated"):
        return Column(
            make=IsolatedExecutor,
            runtime=Runtime.ONNXRUNTIME,
            hardware=(Hardware.CPU,),
            write=lambda graph, folder: graph.write(folder),
            held=lambda model: model._process,
            refused=({"hardware": Hardware.GPU}, {"isolation": Isolation.THREAD}),
            isolation=Isolation.PROCESS,
            is_whole=is_whole,
        )
    return Column(
        make=OnnxRuntimeExecutor,
        runtime=Runtime.ONNXRUNTIME,
        hardware=(Hardware.CPU,),
        write=lambda graph, folder: graph.write(folder),
        held=lambda model: model._graph,
        refused=({"hardware": Hardware.GPU}, {"isolation": Isolation.PROCESS}),
        is_whole=is_whole,
    )


@pytest.fixture
def triton_column(triton_server: TritonProcess) -> Column:
    return Column(
        make=TritonExecutor,
        runtime=Runtime.TRITON,
        hardware=(Hardware.CPU, Hardware.GPU),
        write=lambda graph, folder: attached(triton_server, graph, folder),
        held=lambda model: model._caller,
        refused=({"runtime": Runtime.ONNXRUNTIME}, {"isolation": Isolation.PROCESS}),
        is_text_only=False,
    )


@pytest.fixture
def executor(column: Column) -> Executor:
    return column.make()


@pytest.fixture
def put(column: Column, tmp_path: Path):
    """Writes a graph's artifact and makes the variant that describes it."""

    def _put(graph: graphs.Graph, name: str = "v1", **facts) -> tuple[Variant, Path]:
        known = {"runtime": column.runtime, "isolation": column.isolation}
        return graph.variant(name, **known | facts), column.write(graph, tmp_path)

    return _put


def joined(batch: BatchIn) -> BatchIn:
    """The same batch with each tensor in one piece, if the queries' own can lie together."""
    if Datatype.BYTES in batch.datatypes or not batch.input_names:
        return batch
    values: list[Value] = []
    for place in range(len(batch.input_names)):
        parts = [query.inputs[place] for query in batch.queries]
        tails = {part.shape[1:] for part in parts}
        if len(tails) > 1 or [part.shape[0] for part in parts] != list(batch.items):
            return batch
        data = parts[0].data if len(parts) == 1 else b"".join(part.data for part in parts)
        values.append(Value((sum(batch.items), *tails.pop()), data))
    whole = Whole(tuple(batch.items), tuple(values))
    return BatchIn.of_whole(batch.input_names, batch.datatypes, whole, batch.outputs)


class Together:
    """A loaded model to which whole batches are given."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

    def submit(self, batch: BatchIn) -> Future[BatchOut]:
        return self._model.submit(joined(batch))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.fixture
def load(column: Column, executor: Executor, put):
    """Loads a graph; everything is closed after the test."""
    models: list[LoadedModel] = []

    def _load(graph: graphs.Graph, **facts) -> LoadedModel | Together:
        model = executor.load(*put(graph, **facts))
        models.append(model)
        return Together(model) if column.is_whole else model

    yield _load
    for model in models:
        model.close()


def rows(*values: float, columns: int = 4) -> Value:
    array = np.repeat(np.array(values, np.float32)[:, None], columns, axis=1)
    return Value(array.shape, array.tobytes())


def fp32_batch(*queries: Value, outputs: tuple[str, ...] = ()) -> BatchIn:
    return BatchIn(("x",), (Datatype.FP32,), tuple(QueryIn(q.shape[0], (q,)) for q in queries), outputs)


def indices(*values: int) -> QueryIn:
    array = np.array(values, np.int64)[:, None]
    return QueryIn(len(values), (Value(array.shape, array.tobytes()),))


def first_column(out: BatchOut, query: int, output: int = 0) -> list[float]:
    outcome = out.queries[query]
    assert not isinstance(outcome, QueryError), outcome
    value = outcome[output]
    return np.frombuffer(value.data, np.float32).reshape(value.shape)[:, 0].tolist()


def test_an_executor_names_its_runtime_and_its_devices(column, executor):
    assert executor.runtime is column.runtime
    assert tuple(device.hardware for device in executor.devices) == column.hardware


def test_a_single_query_of_one_item_is_answered_with_all_outputs(load):
    out = load(graphs.double()).submit(fp32_batch(rows(3.0))).result(WAIT_S)
    assert (out.output_names, out.datatypes) == (("y", "z"), (Datatype.FP32, Datatype.FP32))
    assert (first_column(out, 0, 0), first_column(out, 0, 1)) == ([6.0], [4.0])
    assert out.run_s > 0


def test_many_queries_of_several_sizes_get_each_its_own_rows(load):
    out = load(graphs.double()).submit(fp32_batch(rows(1), rows(2, 3), rows(4, 5, 6))).result(WAIT_S)
    assert [first_column(out, i) for i in range(3)] == [[2.0], [4.0, 6.0], [8.0, 10.0, 12.0]]
    assert [q[0].shape for q in out.queries] == [(1, 4), (2, 4), (3, 4)]


def test_only_the_requested_outputs_come_back_in_the_requested_order(load):
    model = load(graphs.double())
    assert model.submit(fp32_batch(rows(1), outputs=("z",))).result(WAIT_S).output_names == ("z",)
    swapped = model.submit(fp32_batch(rows(1), outputs=("z", "y"))).result(WAIT_S)
    assert (first_column(swapped, 0, 0), first_column(swapped, 0, 1)) == ([2.0], [2.0])


def test_outputs_are_views_of_one_result_not_copies(load):
    out = load(graphs.double()).submit(fp32_batch(rows(1), rows(2))).result(WAIT_S)
    views = [q[0].data for q in out.queries]
    assert all(isinstance(view, memoryview) for view in views)
    arrays = [np.frombuffer(view, np.uint8) for view in views]
    assert arrays[1].ctypes.data - arrays[0].ctypes.data == 16


def told(out: BatchOut) -> list[tuple[tuple[tuple[int, ...], bytes], ...] | Code]:
    return [
        each.code if isinstance(each, QueryError) else tuple((value.shape, bytes(value.data)) for value in each)
        for each in out.queries
    ]


@pytest.mark.parametrize(
    ("graph", "batch"),
    [
        (graphs.double(), fp32_batch(rows(7), rows(8, 9), rows(10, 11, 12))),
        (graphs.double(), fp32_batch(rows(7), rows(8), outputs=("z",))),
        (graphs.look_up(), BatchIn(("index",), (Datatype.INT64,), (indices(1), indices(99), indices(2, 3)))),
    ],
    ids=["rows", "one-output", "poison"],
)
def test_queries_that_lie_together_are_answered_as_those_that_do_not(load, graph, batch):
    together = joined(batch)
    assert together.whole is not None
    model = load(graph)
    apart, whole = (model.submit(each).result(WAIT_S) for each in (batch, together))
    assert told(whole) == told(apart)
    assert (whole.output_names, whole.datatypes) == (apart.output_names, apart.datatypes)


def test_a_runtime_in_this_process_gives_whole_answers_and_each_querys_as_views_of_them(tmp_path):
    graph = graphs.double()
    model = OnnxRuntimeExecutor().load(graph.variant("v1"), graph.write(tmp_path))
    out = model.submit(joined(fp32_batch(rows(1), rows(2, 3)))).result(WAIT_S)
    model.close()
    assert out.whole is not None
    assert out.whole.items == (1, 2)
    for place, value in enumerate(out.whole.values):
        assert value.shape == (3, 4)
        assert bytes(value.data) == b"".join(query[place].data for query in out.queries)
        begins = [np.frombuffer(data, np.uint8).ctypes.data for data in (value.data, out.queries[0][place].data)]
        assert begins[0] == begins[1]


def test_memoryviews_are_taken_as_inputs_even_when_unaligned(load):
    raw = b"\x00" + rows(5).data
    out = load(graphs.double()).submit(fp32_batch(Value((1, 4), memoryview(raw)[1:]))).result(WAIT_S)
    assert first_column(out, 0) == [10.0]


def test_several_batches_may_be_in_flight_and_each_gets_its_own_answer(load):
    model = load(graphs.slow(5))
    pending = [model.submit(fp32_batch(rows(float(i)))) for i in range(8)]
    assert model.max_in_flight >= 1
    assert [first_column(f.result(WAIT_S), 0) for f in pending] == [[float(i)] for i in range(8)]


def test_a_submit_returns_before_the_batch_has_run(load):
    model = load(graphs.slow(300))
    future = model.submit(fp32_batch(rows(1)))
    assert not future.done()
    assert first_column(future.result(WAIT_S), 0) == [1.0]


def test_a_model_that_raises_on_a_single_query_is_a_model_error_and_the_next_batch_runs(load):
    model = load(graphs.look_up())
    bad = BatchIn(("index",), (Datatype.INT64,), (indices(99),))
    with pytest.raises(ModelError, match="v1 failed"):
        model.submit(bad).result(WAIT_S)
    good = BatchIn(("index",), (Datatype.INT64,), (indices(3),))
    assert first_column(model.submit(good).result(WAIT_S), 0) == [30.0]


def test_a_poisonous_query_hurts_only_itself(load):
    batch = BatchIn(("index",), (Datatype.INT64,), (indices(1), indices(99), indices(2, 3)))
    out = load(graphs.look_up()).submit(batch).result(WAIT_S)
    assert (first_column(out, 0), first_column(out, 2)) == ([10.0], [20.0, 30.0])
    assert isinstance(out.queries[1], QueryError)
    assert out.queries[1].code is Code.MODEL_FAILED


def test_a_batch_of_poisonous_queries_only_is_a_model_error(load):
    batch = BatchIn(("index",), (Datatype.INT64,), (indices(99), indices(98)))
    with pytest.raises(ModelError):
        load(graphs.look_up()).submit(batch).result(WAIT_S)


@pytest.mark.parametrize(
    ("batch", "fact"),
    [
        (BatchIn(("x",), (Datatype.FP32,), (QueryIn(1, (Value((1, 4), bytes(12)),)),)), "takes 16 bytes, got 12"),
        (BatchIn(("x",), (Datatype.FP64,), (QueryIn(1, (Value((1, 4), bytes(32)),)),)), "takes FP32"),
        (BatchIn(("w",), (Datatype.FP32,), (QueryIn(1, (Value((1, 4), bytes(16)),)),)), "no input 'w'"),
        (BatchIn((), (), (QueryIn(1, ()),)), "lacks input 'x'"),
        (BatchIn(("x",), (Datatype.FP32,), (QueryIn(2, (Value((1, 4), bytes(16)),)),)), "a query of 2 items"),
        (BatchIn(("x",), (Datatype.FP32,), (QueryIn(0, (Value((0, 4), b""),)),)), "at least one item"),
        (BatchIn(("x",), (Datatype.FP32,), (QueryIn(40, (Value((40, 4), bytes(640)),)),)), "at most 32 items"),
        (BatchIn(("x",), (Datatype.FP32,), (QueryIn(1, (Value((1, 4), bytes(16)),)),), ("q",)), "no output 'q'"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_the_fact(load, batch, fact):
    with pytest.raises(InvalidError, match=fact):
        load(graphs.double()).submit(batch).result(WAIT_S)


def test_a_query_of_the_wrong_shape_among_good_ones_hurts_only_itself(load):
    batch = fp32_batch(rows(1), rows(2, columns=5), rows(3))
    out = load(graphs.double()).submit(batch).result(WAIT_S)
    assert (first_column(out, 0), first_column(out, 2)) == ([2.0], [6.0])
    assert isinstance(out.queries[1], QueryError)


def test_an_output_without_the_batch_dimension_is_a_model_error_that_says_so(load):
    with pytest.raises(ModelError, match="not the batch dimension"):
        load(graphs.total()).submit(fp32_batch(rows(1, 2))).result(WAIT_S)


@pytest.mark.parametrize("items", [1, 3, 4, 7])
def test_a_graph_with_a_fixed_batch_serves_any_number_of_items(load, items):
    model = load(graphs.double(batch=3), fixed_batch=3, max_batch=3)
    values = [float(i) for i in range(items)]
    out = model.submit(fp32_batch(rows(*values))).result(WAIT_S)
    assert first_column(out, 0) == [2 * value for value in values]


def test_a_model_that_is_slower_in_large_batches_is_given_them_in_portions(tmp_path):
    slower = a_profile(p95_ms=1, per_item_ms=1)
    latency = tuple(replace(p, mean_s=s, p50_s=s) for p, s in zip(slower.latency, (1, 2, 5, 11, 23, 47), strict=True))
    graph = graphs.company()
    variant = graph.variant("v1", profile=replace(slower, latency=latency))
    model = OnnxRuntimeExecutor().load(variant, graph.write(tmp_path))
    together = model.submit(fp32_batch(rows(1, 2))).result(WAIT_S)
    cut = model.submit(fp32_batch(rows(1), rows(10, 100), rows(1000, 10000))).result(WAIT_S)
    model.close()
    assert variant.portion(5) == 2
    assert first_column(together, 0) == [3, 3]
    assert [first_column(cut, query) for query in range(3)] == [[11], [11, 1100], [1100, 10000]]


def test_outputs_that_depend_on_all_that_is_run_together_are_not_cut(tmp_path):
    slower = a_profile(p95_ms=1, per_item_ms=1)
    latency = tuple(replace(p, mean_s=s, p50_s=s) for p, s in zip(slower.latency, (1, 2, 5, 11, 23, 47), strict=True))
    graph = graphs.widest()
    model = OnnxRuntimeExecutor().load(
        graph.variant("v1", profile=replace(slower, latency=latency)), graph.write(tmp_path)
    )
    batch = fp32_batch(rows(1, 2, 3, 3))
    outs = [model.submit(batch).result(WAIT_S) for _ in range(2)]
    model.close()
    assert [out.queries[0][0].shape for out in outs] == [(4, 3), (4, 3)]


def test_strings_go_in_and_come_out_unchanged(load):
    words = ["", "grün", "a" * 300]
    data = b"".join(struct.pack("<I", len(word.encode())) + word.encode() for word in words)
    batch = BatchIn(("x",), (Datatype.BYTES,), (QueryIn(1, (Value((1, 3), data),)),) * 2)
    out = load(graphs.echo(Datatype.BYTES)).submit(batch).result(WAIT_S)
    assert out.datatypes == (Datatype.BYTES,)
    assert [bytes(q[0].data) for q in out.queries] == [data, data]


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (b"\x01\x00\x00\x00a", "ends after 1"),
        (b"\x09\x00\x00\x00a", "claims 9 bytes"),
        (b"\x00\x00\x00\x00" * 4, "follow the last"),
    ],
)
def test_malformed_strings_are_refused_with_the_fact(load, data, fact):
    batch = BatchIn(("x",), (Datatype.BYTES,), (QueryIn(1, (Value((1, 3), data),)),))
    with pytest.raises(InvalidError, match=fact):
        load(graphs.echo(Datatype.BYTES)).submit(batch).result(WAIT_S)


def test_bytes_that_are_no_text_are_refused_only_where_the_runtime_knows_nothing_but_text(column, load):
    data = b"\x01\x00\x00\x00\xff" + b"\x00\x00\x00\x00" * 2
    batch = BatchIn(("x",), (Datatype.BYTES,), (QueryIn(1, (Value((1, 3), data),)),))
    # The test's model on the Triton server is one that wants text; it is the model that says so, not the executor.
    error, fact = (InvalidError, "not UTF-8") if column.is_text_only else (ModelError, "can't decode byte 0xff")
    with pytest.raises(error, match=fact):
        load(graphs.echo(Datatype.BYTES)).submit(batch).result(WAIT_S)


@pytest.mark.parametrize(
    ("datatype", "array"),
    [
        (Datatype.FP16, np.array([[0.5, -1, 65504]], np.float16)),
        (Datatype.BOOL, np.array([[True, False, True]])),
        (Datatype.INT8, np.array([[-128, 0, 127]], np.int8)),
        (Datatype.UINT8, np.array([[0, 1, 255]], np.uint8)),
        (Datatype.INT64, np.array([[-(2**62), 0, 2**62]], np.int64)),
        (Datatype.FP64, np.array([[math.pi, -0.0, 1e300]], np.float64)),
    ],
)
def test_every_datatype_passes_bit_for_bit(load, datatype, array):
    query = QueryIn(1, (Value(array.shape, array.tobytes()),))
    out = load(graphs.echo(datatype)).submit(BatchIn(("x",), (datatype,), (query, query))).result(WAIT_S)
    assert out.datatypes == (datatype,)
    assert [bytes(q[0].data) for q in out.queries] == [array.tobytes()] * 2


def test_models_load_at_the_same_time_and_answer_independently(executor, put):
    wanted = [graphs.double(), graphs.slow(1), graphs.look_up(), graphs.echo(Datatype.FP16)] * 2
    paths = [put(graph, f"v{i}") for i, graph in enumerate(wanted)]
    with ThreadPoolExecutor(len(paths)) as pool:
        models = list(pool.map(lambda pair: executor.load(*pair), paths))
    try:
        for model, (variant, _) in zip(models, paths, strict=True):
            assert len(model.submit(sample(variant, 2, 1)).result(WAIT_S).queries) == 1
    finally:
        for model in models:
            model.close()


def test_closing_finishes_what_is_pending_then_refuses(executor, put):
    model = executor.load(*put(graphs.slow(50)))
    pending = [model.submit(fp32_batch(rows(float(i)))) for i in range(3)]
    model.close()
    assert [first_column(future.result(0), 0) for future in pending] == [[0.0], [1.0], [2.0]]
    with pytest.raises(UnavailableError):
        model.submit(fp32_batch(rows(1))).result(WAIT_S)


def test_closing_ends_the_owned_threads_and_frees_the_model(column, executor, put):
    before = set(threading.enumerate())
    model = executor.load(*put(graphs.double()))
    model.submit(fp32_batch(rows(1))).result(WAIT_S)
    assert model.memory_bytes() > 0
    held = weakref.ref(column.held(model))
    assert held() is not None
    model.close()
    gc.collect()
    assert (model.memory_bytes(), held()) == (0, None)
    for thread in set(threading.enumerate()) - before:  # one of a library may still be on its way out
        thread.join(WAIT_S)
    assert set(threading.enumerate()) <= before


def test_a_model_that_was_never_used_closes_too_and_lets_go(column, executor, put):
    before = set(threading.enumerate())
    model = executor.load(*put(graphs.double()))
    held = weakref.ref(column.held(model))
    model.close()
    gc.collect()
    assert (model.memory_bytes(), held()) == (0, None)
    with pytest.raises(UnavailableError):
        model.submit(fp32_batch(rows(1))).result(WAIT_S)
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT_S)
    assert set(threading.enumerate()) <= before


def test_what_is_no_model_is_refused_at_loading(column, executor, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"this is not a model")
    with pytest.raises(ModelError, match="cannot load v1"):
        executor.load(graphs.double().variant(runtime=column.runtime, isolation=column.isolation), path)


def test_an_artifact_that_is_not_the_variants_is_refused_at_loading(column, executor, tmp_path):
    variant = graphs.double().variant(runtime=column.runtime, isolation=column.isolation)
    artifact = column.write(graphs.look_up(), tmp_path)
    with pytest.raises(ModelError, match="input 'x' is FP32, absent"):
        executor.load(variant, artifact)


@pytest.mark.parametrize("which", [0, 1])
def test_what_an_executor_cannot_do_it_refuses_instead_of_doing_something_else(column, load, which):
    with pytest.raises(UnsupportedError):
        load(graphs.double(), **column.refused[which])


def test_two_threads_give_the_same_answer_as_one(load):
    one, two = load(graphs.slow(3)), load(graphs.slow(3), threads=2)
    batch = fp32_batch(rows(1, 2))
    assert first_column(one.submit(batch).result(WAIT_S), 0) == first_column(two.submit(batch).result(WAIT_S), 0)


def test_warm_up_batches_are_one_item_and_the_most_or_the_only_number_a_graph_takes():
    assert warm_up_sizes(graphs.double().variant(max_batch=32)) == (1, 32)
    assert warm_up_sizes(graphs.double().variant(max_batch=1)) == (1,)
    assert warm_up_sizes(graphs.double(batch=3).variant(fixed_batch=3, max_batch=3)) == (3,)


def test_sample_batches_fill_open_dimensions_with_the_size_tried(load):
    graph = graphs.open_width()
    variant = graph.variant()
    model = load(graph)
    assert len(open_sizes(variant)) > 1
    with pytest.raises(ModelError):
        model.submit(sample(variant, 1, 1)).result(WAIT_S)
    assert model.submit(sample(variant, 2, 8)).result(WAIT_S).queries[0][0].shape == (2,)


def test_executors_are_found_by_entry_point_and_made_once():
    executors = Executors()
    assert executors.get(Runtime.ONNXRUNTIME) is executors.get(Runtime.ONNXRUNTIME)
    with pytest.raises(UnsupportedError, match="openvino"):
        executors.get(Runtime.OPENVINO)
