from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from infaas.catalog.catalog import Catalog
from infaas.catalog.records import Registration
from infaas.domain.build import BuildResult
from infaas.domain.ids import BuildId, Digest, ModelName, TaskName, VariantName
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.domain.variant import (
    Accuracy,
    Hardware,
    LatencyPoint,
    Precision,
    Profile,
    Runtime,
    Variant,
)

DIGITS = Task(
    TaskName("digits"), (TensorSpec("x", Datatype.FP32, (-1, 4)),), (TensorSpec("y", Datatype.FP32, (-1, 3)),)
)
PROFILE = Profile(
    latency=(LatencyPoint(1, 0.001, 0.001, 0.002, 0.003, 500),),
    fit_base_s=0.0005,
    fit_per_item_s=0.0005,
    fit_error=0.0,
    cold_load_s=0.1,
    warm_load_s=0.05,
    peak_memory_bytes=2**20,
    resident_memory_bytes=2**20,
    throughput_per_s=1000,
    best_batch=1,
    cost_usd_per_1k=0.001,
    accuracy=Accuracy("accuracy", 0.9, 0.88, 0.92, 500),
    samples=Digest("5" * 64),
)


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:
    """Over each kind of database: all of them keep the same promises."""
    opened = Catalog.open(database_url)
    yield opened
    opened.close()


@pytest.fixture
def registration() -> Callable[..., Registration]:
    """A checked upload of model `m` for task `digits`; keywords change it."""

    def make(original: str = "1" * 64, **change: Any) -> Registration:
        made = Registration(
            task=DIGITS,
            is_task_known=False,
            model=ModelName("m"),
            labels={},
            original=Digest(original),
            artifact=Digest("a" * 64),
            evaluation=Digest("e" * 64),
            calibration=None,
            metric="accuracy",
            declared_accuracy=None,
            fixed_batch=None,
            evaluation_rows=500,
        )
        return replace(made, **change)

    return make


@pytest.fixture
def made() -> Callable[..., BuildResult]:
    """The result of a recipe that made a variant of `m`."""

    def make(recipe: str = "fp32", version: int = 1, name: str | None = None, **change: Any) -> BuildResult:
        variant = Variant(
            name=VariantName(name or f"m.v{version}.{recipe}"),
            task=TaskName("digits"),
            model=ModelName("m"),
            version=version,
            recipe=recipe,
            runtime=Runtime.ONNXRUNTIME,
            hardware=Hardware.CPU,
            precision=Precision.FP32,
            threads=1,
            max_batch_size=32,
            fixed_batch=None,
            artifact=Digest("b" * 64),
            inputs=DIGITS.inputs,
            outputs=DIGITS.outputs,
            profile=PROFILE,
        )
        return BuildResult(BuildId(f"m@{version}"), recipe, replace(variant, **change), "made", "", 1e-6, None, 2.0)

    return make
