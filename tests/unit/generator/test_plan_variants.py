"""Which variants are tried, and why others are not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infaas_variant_generator.facts import GraphFacts, HardwareFacts
from infaas_variant_generator.plan import (
    Transform,
    batch_limit_reason,
    batch_sizes,
    plan_variants,
    thread_counts,
    why_not_split,
)
from infaas_variant_generator.transform.base import installed_transforms
from infaas_variant_generator.transform.integers import needs_reduced_range
from infaas_variant_generator.transform.onnxruntime_fp16 import why_no_gain

from infaas.domain.variant import Hardware, Precision, Runtime

GIB = 2**30
TREES = GraphFacts(file_bytes=1000, opset=17, operators={"ai.onnx.ml::TreeEnsembleClassifier": 1})
DENSE = GraphFacts(
    file_bytes=1000, opset=17, operators={"MatMul": 2, "Relu": 1}, constant_weight_operators={"MatMul": 2}
)


CONVOLUTIONS = GraphFacts(
    file_bytes=1000, opset=17, operators={"Conv": 2, "Relu": 2}, constant_weight_operators={"Conv": 2}
)
PREFIXES = ("ort-fp32", "ort-fp16", "ort-int8", "ort-int8-static")


def names(
    facts: GraphFacts, cores: int = 2, fixed_batch: int | None = None, features: tuple[str, ...] = ()
) -> dict[str, str | None]:
    hardware = HardwareFacts(cores=cores, memory_bytes=8 * GIB, features=features)
    transforms = installed_transforms(facts, hardware)
    planned = plan_variants(facts, hardware, transforms, max_batch_size=32, fixed_batch=fixed_batch)
    return {variant.name: variant.skip for variant in planned}


def tried(planned: dict[str, str | None]) -> list[str]:
    return [name for name, skip in planned.items() if skip is None]


def test_single_threads_come_first_and_what_is_skipped_is_said_once() -> None:
    single = [f"{prefix}-t1" for prefix in PREFIXES]
    assert list(names(DENSE)) == [*single, "ort-fp32-t2", "ort-int8-t2"]
    assert set(names(DENSE, features=("avx512_fp16",))) - set(names(DENSE)) == {"ort-fp16-t2"}


def test_matrix_products_are_tried_in_fp32_and_dynamic_int8() -> None:
    assert tried(names(DENSE)) == ["ort-fp32-t1", "ort-int8-t1", "ort-fp32-t2", "ort-int8-t2"]


def test_static_int8_joins_where_there_are_convolutions() -> None:
    assert "ort-int8-static-t1" in tried(names(CONVOLUTIONS))
    assert "ort-int8-static-t2" in tried(names(CONVOLUTIONS))
    assert "convolutions" in (names(DENSE)["ort-int8-static-t1"] or "")
    assert "slower than fp32" in (names(CONVOLUTIONS)["ort-int8-t1"] or "")


def test_a_graph_of_matrix_products_with_a_convolution_in_front_is_quantised_dynamically() -> None:
    transformer = GraphFacts(1000, 17, {"Conv": 1, "MatMul": 48}, {"Conv": 1, "MatMul": 24})
    assert tried(names(transformer, cores=1)) == ["ort-fp32-t1", "ort-int8-t1"]
    image = GraphFacts(1000, 17, {"Conv": 53, "Gemm": 1}, {"Conv": 53, "Gemm": 1})
    assert tried(names(image, cores=1)) == ["ort-fp32-t1", "ort-int8-static-t1"]


def test_static_int8_is_skipped_for_texts_old_opsets_and_weights_without_a_scale() -> None:
    weights = {"Conv": 1}
    assert "texts" in (names(GraphFacts(1, 17, weights, weights, text_inputs=True))["ort-int8-static-t1"] or "")
    assert "opset 7; the graph has 6" in (names(GraphFacts(1, 6, weights, weights))["ort-int8-static-t1"] or "")
    undefined = names(GraphFacts(1, 17, weights, weights, has_undefined_weights=True))
    assert "not a number" in (undefined["ort-int8-static-t1"] or "")
    undefined = names(GraphFacts(1, 17, {"MatMul": 1}, {"MatMul": 1}, has_undefined_weights=True))
    assert "not a number" in (undefined["ort-int8-t1"] or "")


def test_fp16_is_tried_only_where_the_processor_computes_with_it() -> None:
    assert "no half-precision arithmetic" in (names(DENSE, features=("avx512_vnni",))["ort-fp16-t1"] or "")
    for feature in ("avx512_fp16", "amx_fp16", "asimdhp"):
        assert names(DENSE, features=(feature,))["ort-fp16-t1"] is None
    assert "constant weight" in (names(TREES, features=("avx512_fp16",))["ort-fp16-t1"] or "")


def test_a_gpu_computes_with_half_precision() -> None:
    assert why_no_gain(HardwareFacts(1, GIB, Hardware.GPU)) is None


def test_weights_keep_to_seven_bits_where_products_of_eight_are_clipped() -> None:
    assert needs_reduced_range(HardwareFacts(1, GIB))
    assert needs_reduced_range(HardwareFacts(1, GIB, features=("avx512_fp16",)))
    for feature in ("avx512_vnni", "avx_vnni", "amx_int8", "asimd"):
        assert not needs_reduced_range(HardwareFacts(1, GIB, features=(feature,)))


def test_int8_is_skipped_with_the_reason_when_it_would_touch_nothing() -> None:
    planned = names(TREES)
    assert planned["ort-fp32-t1"] is None
    assert planned["ort-int8-t1"] is not None
    assert "TreeEnsembleClassifier" in planned["ort-int8-t1"]


def test_int8_is_skipped_when_the_product_of_two_activations_is_all_there_is() -> None:
    assert names(GraphFacts(1000, 17, {"MatMul": 1}))["ort-int8-t1"] is not None


def test_int8_is_skipped_for_an_opset_older_than_its_operators() -> None:
    old = GraphFacts(1000, 9, {"Gemm": 1}, {"Gemm": 1})
    assert names(old)["ort-int8-t1"] == "dynamic int8 needs opset 11; the graph has 9"


def test_a_recipe_for_other_hardware_is_skipped() -> None:
    gpu = Transform("x", "ort-gpu", Runtime.ONNXRUNTIME, Hardware.GPU, Precision.FP16)
    (planned,) = plan_variants(DENSE, HardwareFacts(1, GIB), [gpu], max_batch_size=4, fixed_batch=None)
    assert planned.skip == "needs gpu; this is cpu"


def test_a_graph_too_large_for_the_memory_is_not_tried() -> None:
    huge = GraphFacts(file_bytes=2 * GIB, opset=17, operators={"Relu": 1})
    hardware = HardwareFacts(1, 2 * GIB)
    transforms = installed_transforms(huge, hardware)
    (planned, *_) = plan_variants(huge, hardware, transforms, max_batch_size=1, fixed_batch=None)
    assert planned.skip is not None
    assert "2048 MiB" in planned.skip


def test_a_fixed_batch_is_the_only_one_measured() -> None:
    hardware = HardwareFacts(2, GIB)
    transforms = installed_transforms(DENSE, hardware)
    planned = plan_variants(DENSE, hardware, transforms, max_batch_size=32, fixed_batch=1)
    assert {(variant.batches, variant.fixed_batch) for variant in planned} == {((1,), 1)}


def test_batches_double_and_end_with_the_limit_itself() -> None:
    assert batch_sizes(32, None) == (1, 2, 4, 8, 16, 32)
    assert batch_sizes(12, None) == (1, 2, 4, 8, 12)
    assert batch_sizes(1, None) == (1,)
    assert batch_sizes(32, 3) == (3,)


@settings(deadline=None)
@given(st.integers(1, 512), st.integers(1, 4096))
def test_threads_never_exceed_the_cores_and_batches_never_the_limit(cores: int, limit: int) -> None:
    assert max(thread_counts(cores)) <= cores < 2 * max(thread_counts(cores))
    sizes = batch_sizes(limit, None)
    assert sizes[0] == 1
    assert sizes[-1] == limit
    assert list(sizes) == sorted(set(sizes))


def test_every_transform_is_tried_with_every_thread_count() -> None:
    hardware = HardwareFacts(4, GIB, features=("avx512_fp16",))
    transforms = installed_transforms(CONVOLUTIONS, hardware)
    planned = plan_variants(CONVOLUTIONS, hardware, transforms, max_batch_size=1, fixed_batch=None)
    assert [(v.transform.prefix, v.threads) for v in planned if v.skip is None] == [
        (prefix, threads) for threads in (1, 2, 4) for prefix in ("ort-fp32", "ort-fp16", "ort-int8-static")
    ]
    assert [v.name for v in planned if v.skip] == ["ort-int8-t1"]


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 7, 8, 12, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256])
def test_the_number_of_recipes_grows_with_the_logarithm_of_the_cores(cores: int) -> None:
    planned = names(CONVOLUTIONS, cores=cores, features=("avx512_fp16",))
    assert len(planned) <= len(PREFIXES) * cores.bit_length()


def test_more_threads_are_tried_whatever_they_gain_once_a_run_is_long_enough_to_be_split() -> None:
    assert why_not_split(100e-6, 32, 2) is None
    assert why_not_split(2.0, 1, 16) is None


def test_a_run_too_short_to_be_split_is_a_reason_with_its_figures() -> None:
    assert why_not_split(58.04e-6, 32, 2) == (
        "too short to be split over 2 threads: a batch of 32 takes 58 µs on one, 100 µs would do"
    )


def test_a_batch_limit_falls_for_time_for_memory_and_for_no_gain_but_not_for_length_alone() -> None:
    assert "over 2 s" in (batch_limit_reason(8, 2.5, 1.0, 0, GIB) or "")
    assert "MiB" in (batch_limit_reason(8, 0.1, 0.1, GIB // 2 + 1, GIB) or "")
    assert "smaller batches take 50.0 ms" in (batch_limit_reason(8, 0.4, 0.05, 0, GIB) or "")
    assert batch_limit_reason(8, 0.4, 0.1, 0, GIB) is None
    assert batch_limit_reason(1, 1.9, None, 0, GIB) is None
