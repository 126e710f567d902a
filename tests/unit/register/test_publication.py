from __future__ import annotations

import pytest
from infaas_controller.register.options import task_problems
from infaas_controller.register.publication import (
    SOURCE,
    Registered,
    desired_records,
    model_of,
    plan_writes,
    refusal,
)
from infaas_controller.register.warm import preference

from infaas.catalog.records import ModelRow, VersionRow
from infaas.domain.ids import Digest, ModelName, TaskName, version_id
from infaas.domain.lifecycle import BuildState
from infaas.domain.query import Objective
from infaas.domain.task import ModelState, TaskDefaults
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.domain.variant import VariantState
from infaas.settings import Settings
from infaas.store.base import Kind, Record
from infaas.testing.builders import a_digest, a_task, a_variant

SETTINGS = Settings()


def a_row(current: int | None = None, wanted: int | None = None, reason: str = "") -> ModelRow:
    return ModelRow(ModelName("m"), TaskName("digits"), current, wanted, {}, reason, 1.0, None)


def a_version(number: int = 1, state: BuildState = BuildState.READY, reason: str = "") -> VersionRow:
    return VersionRow(
        version_id("m", number), ModelName("m"), number, a_digest("o"), a_digest("a"), Digest("e" * 64), None,
        "accuracy", None, None, 10, (), state, reason, 1.0, 1.0,
    )  # fmt: skip


def the_records(desired: dict[tuple[Kind, str], bytes]) -> list[Record]:
    return [Record(kind, key, value, 1) for (kind, key), value in desired.items()]


def everything() -> dict[tuple[Kind, str], bytes]:
    versions = [a_version(1), a_version(2, BuildState.BUILDING), a_version(3, BuildState.RETIRED)]
    registered = Registered([a_task()], [a_row(1, 1)], versions, [a_variant("m.v1.a", model="m")], {})
    return desired_records(registered, SETTINGS)


def test_what_is_registered_is_what_the_store_shall_say() -> None:
    assert set(everything()) == {
        (Kind.TASK, "digits"), (Kind.MODEL, "m"), (Kind.VARIANT, "m.v1.a"), (Kind.BUILD, "m@2"),
    }  # fmt: skip


def test_a_store_that_says_so_already_is_left_alone() -> None:
    assert plan_writes(everything(), the_records(everything())) == []


def test_an_empty_store_gets_variants_before_the_models_that_name_them() -> None:
    kinds = [write.kind for write in plan_writes(everything(), [])]
    assert kinds == [Kind.TASK, Kind.VARIANT, Kind.MODEL, Kind.BUILD]


@pytest.mark.parametrize(
    ("source", "catalogue", "models", "in_store", "is_refused"),
    [
        ("a", "b", 0, 2, True),
        ("a", "a", 0, 2, False),
        ("a", "b", 1, 2, False),
        ("a", "b", 0, 0, False),
        (None, "b", 0, 2, False),
    ],
)
def test_only_another_catalogue_without_a_model_is_kept_from_emptying_a_store(
    source: str | None, catalogue: str, models: int, in_store: int, is_refused: bool
) -> None:
    found = [Record(Kind.MODEL, f"m{number}", b"x", 1) for number in range(in_store)]
    found += [] if source is None else [Record(*SOURCE, source.encode(), 1)]
    registered = Registered([], [a_row(1, 1)] * models, [], [], {})
    assert (refusal(catalogue, registered, found) is not None) is is_refused


def test_what_is_too_much_goes_and_what_belongs_to_others_stays() -> None:
    strays = [
        Record(Kind.MODEL, "gone", b"x", 1),
        Record(Kind.BUILD, "m@1", b"x", 1),
        Record(Kind.RESULT, "m@1/fp32", b"x", 1),
        Record(Kind.RESULT, "m@2/fp32", b"x", 1),
        Record(Kind.WORKER, "w", b"x", 1),
    ]
    writes = plan_writes(everything(), [*the_records(everything()), *strays])
    assert [(w.kind, w.key, w.value) for w in writes] == [
        (Kind.MODEL, "gone", None), (Kind.BUILD, "m@1", None), (Kind.RESULT, "m@1/fp32", None),
    ]  # fmt: skip


def test_a_build_that_a_generator_works_on_is_not_overwritten() -> None:
    desired = everything()
    records = [r if r.kind is not Kind.BUILD else Record(r.kind, r.key, b"theirs", 7) for r in the_records(desired)]
    assert plan_writes(desired, records) == []


@pytest.mark.parametrize(
    ("row", "versions", "state", "reason"),
    [
        (a_row(), [a_version(1, BuildState.RECEIVED)], ModelState.LOADING, "version 1 is being built"),
        (a_row(), [a_version(1, BuildState.FAILED, "no")], ModelState.UNAVAILABLE, "version 1 failed: no"),
        (a_row(1, 1), [a_version(1), a_version(2, BuildState.BUILDING)], ModelState.READY, ""),
        (a_row(1, 2), [a_version(1), a_version(2)], ModelState.READY, "version 2 is being warmed"),
        (a_row(1, 2, "no worker"), [a_version(1), a_version(2)], ModelState.READY, "no worker"),
        (a_row(None, 1), [a_version(1)], ModelState.LOADING, "version 1 is being warmed"),
        (a_row(), [], ModelState.UNAVAILABLE, "no version"),
    ],
)
def test_a_models_state_says_what_it_waits_for(
    row: ModelRow, versions: list[VersionRow], state: ModelState, reason: str
) -> None:
    model = model_of(row, versions)
    assert (model.state, model.reason) == (state, reason)


GOOD = a_variant("good", p95_ms=9.0, accuracy=0.95, cost=0.9)
FAIR = a_variant("fair", p95_ms=5.0, accuracy=0.94, cost=0.5)
POOR = a_variant("poor", p95_ms=1.0, accuracy=0.80, cost=0.1)


@pytest.mark.parametrize(
    ("defaults", "order"),
    [
        (TaskDefaults(), ["fair", "good", "poor"]),
        (TaskDefaults(slo_accuracy_min=0.0), ["poor", "fair", "good"]),
        (TaskDefaults(objective=Objective.ACCURACY), ["good", "fair", "poor"]),
        (TaskDefaults(slo_accuracy_min=0.0, objective=Objective.LATENCY), ["poor", "fair", "good"]),
        (TaskDefaults(slo_latency_ms=6.0), ["fair", "good", "poor"]),
        (TaskDefaults(max_cost=0.2), ["good", "fair", "poor"]),
        (TaskDefaults(slo_accuracy_min=0.99), ["good", "fair", "poor"]),
    ],
)
def test_what_is_warmed_is_what_default_requirements_would_choose(defaults: TaskDefaults, order: list[str]) -> None:
    assert preference(a_task(defaults=defaults), [GOOD, FAIR, POOR]) == order


def test_what_cannot_be_selected_is_never_warmed() -> None:
    unable = [a_variant("a", has_profile=False), a_variant("b", state=VariantState.DISABLED)]
    assert preference(a_task(), unable) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "a b"}, "must match"),
        ({"inputs": ()}, "at least one input"),
        ({"outputs": (TensorSpec("y", Datatype.FP32, (3,)),)}, "must start with -1"),
        ({"outputs": (TensorSpec("y", Datatype.FP32, (-1, 0)),)}, "sizes are positive"),
        ({"outputs": (TensorSpec("", Datatype.FP32, (-1,)),)}, "empty name"),
        ({"inputs": (TensorSpec("y", Datatype.FP32, (-1,)),) * 2}, "two inputs are called 'y'"),
        ({"metric": "nope"}, "unknown metric"),
        ({"defaults": TaskDefaults(slo_accuracy_min=3.0)}, "slo_accuracy_min"),
        ({"labels": {"k": "v" * 300}}, "300 characters"),
    ],
)
def test_a_task_that_cannot_be_is_refused(change: dict[str, object], words: str) -> None:
    problems = task_problems(a_task(**change), ["accuracy"])  # type: ignore[arg-type]
    assert any(words in problem for problem in problems), problems


def test_an_input_and_an_output_need_names_of_their_own() -> None:
    spec = TensorSpec("x", Datatype.FP32, (-1, 2))
    assert task_problems(a_task(inputs=(spec,), outputs=(spec,)), ["accuracy"]) == [
        "'x' is an input and an output at once; names must differ"
    ]
