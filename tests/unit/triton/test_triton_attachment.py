"""What a server says of a model decides whether and how it is attached."""

from __future__ import annotations

from dataclasses import replace

import pytest
from infaas_controller.register.attachment import AttachOptions, attach_problems, plan_attachment

from infaas.domain.ids import TaskName
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.domain.variant import Hardware
from infaas.errors import InvalidError
from infaas.oip.v2 import grpc_service_pb2 as oip
from infaas.oip.v2 import model_config_pb2 as config_pb2
from infaas.triton.facts import MAX_IN_FLIGHT, ModelFacts, ServerTensor, changes, facts_of
from infaas.triton.reference import is_reference, read_reference, write_reference

DIGITS = Task(
    TaskName("digits"),
    (TensorSpec("image", Datatype.FP32, (-1, 64)),),
    (TensorSpec("scores", Datatype.FP32, (-1, 10)),),
)
MAPPING = {"INPUT0": "image", "OUTPUT0": "scores"}
OPTIONS = AttachOptions("grpc://triton:8001", "mlp", "", "digits", mapping=MAPPING)


def facts(
    *, shape: tuple[int, ...] = (-1, 64), kind: str = "FP32", max_batch: int = 8, out: tuple[int, ...] = (-1, 10)
) -> ModelFacts:
    return ModelFacts(
        "mlp", "3", "python", (ServerTensor("INPUT0", kind, shape),), (ServerTensor("OUTPUT0", "FP32", out),),
        max_batch, 2, Hardware.CPU,
    )  # fmt: skip


def metadata(*versions: str) -> oip.ModelMetadataResponse:
    tensor = oip.ModelMetadataResponse.TensorMetadata
    return oip.ModelMetadataResponse(
        name="mlp",
        versions=versions or ("1",),
        platform="python",
        inputs=[tensor(name="INPUT0", datatype="FP32", shape=[-1, 64])],
        outputs=[tensor(name="OUTPUT0", datatype="FP32", shape=[-1, 10])],
    )


def test_names_and_the_smaller_batch_limit_go_into_the_reference():
    reference = plan_attachment(facts(), OPTIONS, DIGITS, 32).reference
    assert reference is not None
    assert [(one.ours, one.theirs) for one in (*reference.inputs, *reference.outputs)] == [
        ("image", "INPUT0"),
        ("scores", "OUTPUT0"),
    ]
    assert (reference.version, reference.max_batch_size, reference.fixed_batch, reference.instances) == (
        "3",
        8,
        None,
        2,
    )
    larger = plan_attachment(facts(max_batch=64), OPTIONS, DIGITS, 32).reference
    assert larger is not None
    assert larger.max_batch_size == 32


def test_a_model_of_halves_is_cast_on_the_way_and_back():
    reference = plan_attachment(facts(kind="FP16"), OPTIONS, DIGITS, 32).reference
    assert reference is not None
    assert (reference.inputs[0].task_type, reference.inputs[0].model_type) == (Datatype.FP32, Datatype.FP16)


def test_without_a_batch_limit_the_shape_says_what_a_request_may_hold():
    dynamic = plan_attachment(facts(max_batch=0), OPTIONS, DIGITS, 32).reference
    fixed = plan_attachment(facts(max_batch=0, shape=(4, 64), out=(4, 10)), OPTIONS, DIGITS, 32).reference
    alone = plan_attachment(facts(max_batch=0, shape=(64,), out=(10,)), OPTIONS, DIGITS, 32).reference
    found = [(r.is_batched, r.fixed_batch, r.max_batch_size) for r in (dynamic, fixed, alone) if r is not None]
    assert found == [(True, None, 32), (True, 4, 4), (False, None, 32)]


def test_a_first_dimension_without_meaning_is_refused_rather_than_guessed():
    plan = plan_attachment(facts(max_batch=0, shape=(64,), out=(10,)), OPTIONS, None, 32)
    assert plan.reference is None
    assert any("create the task first" in problem for problem in plan.problems)


def test_a_new_task_takes_the_models_tensors_under_their_new_names():
    plan = plan_attachment(facts(), OPTIONS, None, 32)
    assert plan.inputs == DIGITS.inputs
    assert plan.outputs == DIGITS.outputs


def test_tensors_that_do_not_fit_the_task_are_all_named():
    plan = plan_attachment(facts(shape=(-1, 63)), replace(OPTIONS, mapping={"INPUT0": "image"}), DIGITS, 32)
    assert plan.reference is None
    assert any("dimension 1 is 63" in problem for problem in plan.problems)
    assert any("lacks output 'scores'" in problem for problem in plan.problems)


def test_state_and_streams_are_refused_with_the_reason():
    config = config_pb2.ModelConfig(name="mlp", max_batch_size=8)
    config.sequence_batching.max_sequence_idle_microseconds = 1
    config.model_transaction_policy.decoupled = True
    found = facts_of(metadata(), config)
    assert any("sequence_batching" in problem for problem in found.problems)
    assert any("decoupled" in problem for problem in found.problems)
    plan = plan_attachment(found, OPTIONS, DIGITS, 32)
    assert plan.reference is None
    assert all(problem.startswith("model 'mlp' cannot be attached") for problem in plan.problems)


def test_a_datatype_that_queries_cannot_have_is_named():
    found = metadata()
    found.inputs[0].datatype = "BF16"
    assert "input 'INPUT0' is BF16" in facts_of(found, config_pb2.ModelConfig()).problems[0]


def test_the_newest_version_is_taken_by_number_and_another_only_if_it_is_loaded():
    config = config_pb2.ModelConfig()
    assert facts_of(metadata("9", "10"), config).version == "10"
    assert facts_of(metadata("9", "10"), config, "9").version == "9"
    with pytest.raises(InvalidError, match="no version '8'; loaded are 9, 10"):
        facts_of(metadata("9", "10"), config, "8")


def test_instances_are_counted_over_devices_and_bounded():
    config = config_pb2.ModelConfig()
    config.instance_group.add(count=2, kind=config_pb2.ModelInstanceGroup.KIND_GPU, gpus=[0, 1])
    config.instance_group.add(count=1, kind=config_pb2.ModelInstanceGroup.KIND_CPU)
    config.instance_group.add(count=5, passive=True)
    found = facts_of(metadata(), config)
    assert (found.instances, found.hardware) == (5, Hardware.GPU)
    config.instance_group.add(count=500)
    assert facts_of(metadata(), config).instances == MAX_IN_FLIGHT


def test_what_changed_on_the_server_since_is_named():
    reference = plan_attachment(facts(), OPTIONS, DIGITS, 32).reference
    assert reference is not None
    assert changes(reference, facts()) == []
    other = replace(facts(kind="FP64", max_batch=4), outputs=())
    assert changes(reference, other) == [
        "input 'INPUT0' was FP32 and is FP64",
        "output 'OUTPUT0' was FP32 and is absent",
        "its batch limit was 8 and is 4",
    ]


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"url": "http://triton:8000"}, "8001 unless it was told otherwise"),
        ({"url": "grpc://user:secret@triton:8001"}, "grpc://HOST:PORT"),
        ({"server_model": ""}, "must be named"),
        ({"server_model": "my model"}, "give one with --name"),
        ({"name": "digits"}, "cannot both be called"),
        ({"metric": "beauty"}, "unknown metric 'beauty'"),
        ({"metric": "mae"}, "scored by 'accuracy'"),
        ({"accuracy": float("nan")}, "between 0 and 1"),
        ({"price_usd_per_hour": -1.0}, "0 or more"),
        ({"mapping": {"INPUT0": ""}}, "both names must be given"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused_before_the_server_is_asked(change, fact):
    problems = attach_problems(replace(OPTIONS, **change), DIGITS, {"accuracy", "mae"})
    assert any(fact in problem for problem in problems), problems


def test_a_reference_is_told_from_a_graph_and_read_back(tmp_path):
    reference = plan_attachment(facts(), OPTIONS, DIGITS, 32).reference
    assert reference is not None
    path, graph = tmp_path / "a", tmp_path / "b"
    write_reference(reference, path)
    graph.write_bytes(b"\x08\x08\x12\x04onnx")
    assert (is_reference(path), is_reference(graph)) == (True, False)
    assert read_reference(path) == reference
    with pytest.raises(InvalidError, match="no reference"):
        read_reference(graph)
    write_reference(replace(reference, format="infaas.triton/99"), path)
    with pytest.raises(InvalidError, match="triton/99"):
        read_reference(path)
