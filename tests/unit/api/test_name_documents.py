"""What the protocol says about names, at all three levels, from a view alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from infaas_controller.api.documents import (
    Index,
    config,
    default_floor,
    metadata,
    repository_index,
    resolve,
    state_of,
    variant_to_load,
)
from infaas_controller.api.stats import all_statistics, statistics
from infaas_controller.ports import VariantStats

from infaas.domain.cluster import ClusterView
from infaas.domain.lifecycle import InstanceState, WorkerState
from infaas.domain.task import ModelState
from infaas.domain.variant import AccuracySource, VariantState
from infaas.errors import NotFoundError
from infaas.testing.builders import a_model, a_variant, a_view, a_worker, an_accuracy, an_instance


def a_family() -> ClusterView:
    """Model `m` with versions 1 and 2 (2 serves), model `n` with version 3; an instance of n's only."""
    variants = [
        a_variant("m.v1.a", model="m", version=1),
        a_variant("m.v2.a", model="m", version=2, accuracy=0.95, cost=0.5),
        a_variant("m.v2.b", model="m", version=2, accuracy=0.80, cost=0.1),
        a_variant("n.v3.a", model="n", version=3, accuracy=0.94, cost=0.3, max_batch=8),
    ]
    worker = a_worker(instances=[an_instance("i", variant="n.v3.a")])
    return a_view(variants=variants, workers=[worker])


def test_a_task_has_the_versions_that_serve_a_model_all_ready_ones_a_variant_its_own() -> None:
    index = Index(a_family())
    assert metadata(resolve(index, "digits"))["versions"] == ["2", "3"]
    assert metadata(resolve(index, "m"))["versions"] == ["1", "2"]
    assert metadata(resolve(index, "m.v1.a"))["versions"] == ["1"]
    platforms = [metadata(resolve(index, name))["platform"] for name in ("digits", "m", "m.v1.a")]
    assert platforms == ["infaas", "infaas", "onnxruntime_onnx"]


def test_what_a_handle_admits_follows_level_and_version() -> None:
    index = Index(a_family())

    def names(name: str, version: int | None = None) -> list[str]:
        return sorted(variant.name for variant in resolve(index, name, version).variants)

    assert names("digits") == ["m.v2.a", "m.v2.b", "n.v3.a"]
    assert names("digits", 3) == ["n.v3.a"]
    assert names("m") == ["m.v2.a", "m.v2.b"]
    assert names("m", 1) == ["m.v1.a"]
    assert names("m.v2.b") == ["m.v2.b"]


@pytest.mark.parametrize(("name", "version"), [("digits", 1), ("m", 3), ("m.v1.a", 2), ("nothing", None)])
def test_what_is_not_registered_is_not_found(name: str, version: int | None) -> None:
    with pytest.raises(NotFoundError):
        resolve(Index(a_family()), name, version)


def test_config_has_tritons_fields_with_dims_without_the_batch() -> None:
    document = config(resolve(Index(a_family()), "n"))
    assert (document["name"], document["max_batch_size"]) == ("n", 8)
    (given,) = document["input"]
    assert (given["name"], given["data_type"], given["dims"]) == ("image", "TYPE_FP32", [64])
    assert [(o["data_type"], o["dims"]) for o in document["output"]] == [("TYPE_INT64", []), ("TYPE_FP32", [10])]
    assert document["parameters"]["level"] == {"string_value": "model"}
    assert document["model_transaction_policy"] == {"decoupled": False}


@pytest.mark.parametrize(
    ("instances", "expected"),
    [
        ([InstanceState.LOADING, InstanceState.READY], ModelState.READY),
        ([InstanceState.LOADING, InstanceState.DRAINING], ModelState.LOADING),
        ([InstanceState.DRAINING], ModelState.UNLOADING),
        ([], ModelState.UNAVAILABLE),
        ([InstanceState.FAILED], ModelState.UNAVAILABLE),
    ],
)
def test_a_models_state_is_that_of_its_best_instance(instances: list[InstanceState], expected: ModelState) -> None:
    records = [an_instance(f"i{n}", variant="v1", state=state, reason="no memory") for n, state in enumerate(instances)]
    index = Index(a_view(variants=[a_variant("v1")], workers=[a_worker(instances=records)]))
    for name in ("digits", "m1", "v1"):
        state, reason = state_of(index, resolve(index, name))
        assert state is expected
        assert bool(reason) is (expected is not ModelState.READY)
    if instances == [InstanceState.FAILED]:
        assert "no memory" in reason


def test_instances_of_a_draining_worker_make_nothing_ready() -> None:
    worker = a_worker(instances=[an_instance(variant="v1")], state=WorkerState.DRAINING)
    index = Index(a_view(variants=[a_variant("v1")], workers=[worker]))
    assert state_of(index, resolve(index, "v1")) == (ModelState.UNAVAILABLE, "no worker is ready")


def test_a_model_without_variants_says_what_it_waits_for() -> None:
    model = a_model("young", current=None, state=ModelState.LOADING, reason="variants are being made")
    index = Index(a_view(models=[model]))
    assert state_of(index, resolve(index, "young")) == (ModelState.LOADING, "variants are being made")
    assert {"name": "young", "version": "", "state": "LOADING", "reason": "variants are being made"} in (
        repository_index(index, is_ready_only=False)
    )


def test_a_disabled_variant_is_unavailable_with_its_reason() -> None:
    variant = a_variant("v1", state=VariantState.DISABLED, reason="by hand")
    worker = a_worker(instances=[an_instance(variant="v1")])
    index = Index(a_view(variants=[variant], workers=[worker]))
    assert state_of(index, resolve(index, "v1")) == (ModelState.UNAVAILABLE, "by hand")


def test_the_index_lists_every_name_and_version_and_can_be_narrowed() -> None:
    index = Index(a_family())
    rows = repository_index(index, is_ready_only=False)
    assert [(row["name"], row["version"]) for row in rows] == [
        ("digits", "2"), ("digits", "3"), ("m", "1"), ("m", "2"), ("n", "3"),
        ("m.v1.a", "1"), ("m.v2.a", "2"), ("m.v2.b", "2"), ("n.v3.a", "3"),
    ]  # fmt: skip
    ready = [(row["name"], row["version"]) for row in repository_index(index, is_ready_only=True)]
    assert ready == [("digits", "3"), ("n", "3"), ("n.v3.a", "3")]


def test_a_load_takes_the_cheapest_variant_above_the_default_floor() -> None:
    view = a_family()
    index = Index(view)
    assert default_floor(resolve(index, "digits")) == pytest.approx(0.93)
    assert variant_to_load(resolve(index, "digits")).name == "n.v3.a"
    assert variant_to_load(resolve(index, "m")).name == "m.v2.a"
    assert variant_to_load(resolve(index, "m.v2.b")).name == "m.v2.b"
    task = view.tasks["digits"]  # type: ignore[index]
    free = replace(task, defaults=replace(task.defaults, slo_accuracy_min=0.0))
    anything = Index(replace(view, tasks={free.name: free}))
    assert variant_to_load(resolve(anything, "digits")).name == "m.v2.b"


def test_a_declared_accuracy_raises_no_floor_and_what_is_unmeasured_is_not_loaded() -> None:
    declared = an_accuracy(0.99, source=AccuracySource.DECLARED)
    view = a_view(variants=[a_variant("v1", accuracy=declared), a_variant("v2", has_profile=False)])
    assert default_floor(resolve(Index(view), "digits")) == 0.0
    assert variant_to_load(resolve(Index(view), "digits")).name == "v1"
    with pytest.raises(NotFoundError, match="failed to load"):
        variant_to_load(resolve(Index(view), "v2"))


def test_statistics_sum_variants_by_version_under_the_name_asked_for() -> None:
    index = Index(a_family())
    stats = {
        "m.v2.a": VariantStats(3, 2, 2, 1, 0.1, 0.2, 0.3, 0.4, 10.0, {1: (1, 0.1), 2: (1, 0.1)}),
        "m.v2.b": VariantStats(5, 1, 1, 0, 0.1, 0.2, 0.3, 0.0, 20.0, {2: (1, 0.3)}),
        "m.v1.a": VariantStats(7, 7, 7, 0, 0.0, 0.0, 0.0, 0.0, 5.0, None),
    }
    first, second = statistics(index, stats, "m", None)  # type: ignore[arg-type]
    assert (first["version"], first["inference_count"]) == ("1", 7)
    assert (second["name"], second["version"], second["inference_count"]) == ("m", "2", 8)
    assert second["last_inference"] == 20_000
    assert second["inference_stats"]["success"] == {"count": 3, "ns": 600_000_000}
    assert second["inference_stats"]["fail"] == {"count": 1, "ns": 400_000_000}
    sizes = [(row["batch_size"], row["compute_infer"]) for row in second["batch_stats"]]
    assert sizes == [(1, {"count": 1, "ns": 100_000_000}), (2, {"count": 2, "ns": 400_000_000})]
    (task_row, _) = statistics(index, stats, "digits", None)  # type: ignore[arg-type]
    assert (task_row["name"], task_row["version"], task_row["inference_count"]) == ("digits", "2", 8)


def test_all_statistics_are_the_rows_of_the_repository_index_and_count_once_at_each_level() -> None:
    index = Index(a_family())
    stats = {name: VariantStats(count) for name, count in (("m.v2.a", 3), ("m.v2.b", 5), ("n.v3.a", 11))}
    rows = all_statistics(index, stats)  # type: ignore[arg-type]
    listed = [(row["name"], row["version"]) for row in repository_index(index, False)]
    assert [(row["name"], row["version"]) for row in rows] == listed

    def total(*names: str) -> int:
        return sum(row["inference_count"] for row in rows if row["name"] in names)

    assert total("digits") == total("m", "n") == total("m.v1.a", "m.v2.a", "m.v2.b", "n.v3.a") == 19
    assert [(row["version"], row["inference_count"]) for row in rows if row["name"] == "digits"] == [
        ("2", 8), ("3", 11),
    ]  # fmt: skip
