"""Every kind of bad upload is refused with words that help, all problems at once; good ones are adapted."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from infaas_controller.register.inspection import InspectionAnswer
from inspecting import LABELS, ROWS, TASK, look, only_problem
from onnx import TensorProto, helper, numpy_helper
from registrar_house import MakeData, MakeModel

from infaas.domain.ids import TaskName
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, TensorSpec

CLASSES: dict[str, Any] = {"classlabels_int64s": [0, 1, 2]}


def run(model: Path, **inputs: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(str(model.parent / "adapted.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def test_a_fitting_model_passes_and_says_what_it_is(model_file: MakeModel, data_file: MakeData) -> None:
    answer = look(model_file(), data_file())
    assert answer == InspectionAnswer((), (), TASK.inputs, TASK.outputs, None, 40)


def test_a_new_task_is_what_the_model_says_with_a_free_batch(model_file: MakeModel, data_file: MakeData) -> None:
    answer = look(model_file(outputs=("scores", "label")), data_file(), None)
    assert answer.problems == ()
    assert answer.inputs == (TensorSpec("x", Datatype.FP32, (-1, 4)),)
    assert answer.outputs == (TensorSpec("scores", Datatype.FP32, (-1, 3)), TensorSpec("label", Datatype.INT64, (-1,)))


# Files that are no models


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, this is no protobuf at all", "not an ONNX"),
        (pickle.dumps({"state_dict": [1, 2]}), "looks like a Python pickle"),
        (b"PK\x03\x04" + b"\0" * 50, "zip archive"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 50, "HDF5"),
        (b'{"a": 1}', "JSON"),
    ],
)
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert words in only_problem(look(path))


def test_a_truncated_model_is_refused(model_file: MakeModel) -> None:
    path = model_file()
    path.write_bytes(path.read_bytes()[:-20])
    assert "not an ONNX file" in only_problem(look(path))


def test_a_model_that_is_too_large_is_refused(model_file: MakeModel) -> None:
    assert "too large" in only_problem(look(model_file(), max_bytes=100))


# What is in the graph


def test_an_opset_newer_than_the_runtime_is_refused_with_the_newest_supported(model_file: MakeModel) -> None:
    problems = look(model_file(opset=99)).problems
    assert any("opset 99 is not supported" in p and "takes up to" in p for p in problems), problems


def test_an_opset_from_before_the_runtime_is_refused(model_file: MakeModel) -> None:
    assert any("opset 5 is too old" in p for p in look(model_file(opset=5)).problems)


def test_a_newer_file_format_is_refused(model_file: MakeModel) -> None:
    problems = look(model_file(ir_version=99)).problems
    assert any("IR version 99 is not supported" in p and "takes up to" in p for p in problems), problems


def test_custom_operators_are_refused_also_inside_branches(model_file: MakeModel) -> None:
    branch = helper.make_graph(
        [helper.make_node("Evil", ["scores"], ["inner"], domain="my.ops")],
        "b", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )  # fmt: skip
    choice = helper.make_node("If", ["flag"], ["chosen"], then_branch=branch, else_branch=branch)
    flag = helper.make_node("Constant", [], ["flag"], value=numpy_helper.from_array(np.array(True)))
    path = model_file(extra=[flag, choice], domains=["my.ops"])
    assert "custom operators are refused: my.ops::Evil" in only_problem(look(path))


def test_operators_that_the_runtime_does_not_know_are_refused(model_file: MakeModel) -> None:
    node = helper.make_node("NoSuchThing", ["scores"], ["other"], domain="com.microsoft")
    info = helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", 3])
    path = model_file(extra=[node], extra_outputs=[info], domains=["com.microsoft"])
    answer = look(path, None, None)
    assert "NoSuchThing" in only_problem(answer)


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "weights.bin"])
def test_weights_outside_the_file_are_refused(tmp_path: Path, model_file: MakeModel, location: str) -> None:
    path = model_file()
    model = onnx.load(path)
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.append(onnx.StringStringEntryProto(key="location", value=location))
    path.write_bytes(model.SerializeToString())
    problem = only_problem(look(path))
    assert "weights in other files" in problem
    assert location in problem
    assert "save_as_external_data=False" in problem


def test_maps_in_outputs_are_refused_with_the_cure(model_file: MakeModel) -> None:
    zipmap = helper.make_node(
        "ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]
    )
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    info = helper.make_value_info("probabilities", kind)
    path = model_file(outputs=("label",), extra=[zipmap], extra_outputs=[info], domains=["ai.onnx.ml"])
    problem = only_problem(look(path, None, None))
    assert "sequence(map(int64, tensor(float)))" in problem
    assert "'zipmap': False" in problem


def test_a_map_that_the_task_does_not_name_is_dropped_with_its_node(model_file: MakeModel, data_file: MakeData) -> None:
    zipmap = helper.make_node(
        "ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]
    )
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    info = helper.make_value_info("probabilities", kind)
    path = model_file(outputs=("label",), extra=[zipmap], extra_outputs=[info], domains=["ai.onnx.ml"])
    task = Task(TaskName("t"), TASK.inputs, (TensorSpec("label", Datatype.INT64, (-1,)),))
    answer = look(path, data_file(), task)
    assert answer.problems == ()
    assert any("dropped: probabilities" in w for w in answer.warnings)
    assert "ZipMap" not in [node.op_type for node in onnx.load(path.parent / "adapted.onnx").graph.node]


def test_unservable_tensor_types_are_refused(model_file: MakeModel) -> None:
    cast = helper.make_node("Cast", ["scores"], ["narrow"], to=TensorProto.BFLOAT16)
    info = helper.make_tensor_value_info("narrow", TensorProto.BFLOAT16, ["N", 3])
    assert "tensor(bfloat16)" in only_problem(look(model_file(extra=[cast], extra_outputs=[info]), None, None))


# Fit with the task


def test_missing_inputs_and_outputs_are_named_with_the_map_that_would_help(model_file: MakeModel) -> None:
    task = Task(
        TaskName("t"), (TensorSpec("image", Datatype.FP32, (-1, 4)),), (TensorSpec("y", Datatype.FP32, (-1, 3)),)
    )
    problems = look(model_file(), None, task).problems
    assert any("lacks input 'image'" in p and "--map x=image" in p for p in problems)
    assert any("lacks output 'y'" in p and "--map scores=y" in p for p in problems)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (TensorSpec("x", Datatype.FP32, (-1, 5)), "dimension 1 is 4 in the model and 5 in task"),
        (TensorSpec("x", Datatype.FP32, (-1, -1)), "dimension 1 is 4 in the model and any in task"),
        (TensorSpec("x", Datatype.FP32, (-1, 2, 2)), "has 2 dimensions [-1, 4] in the model and 3 [-1, 2, 2] in task"),
        (TensorSpec("x", Datatype.BYTES, (-1, 4)), "is FP32 in the model and BYTES in task"),
    ],
)
def test_inputs_that_do_not_fit_the_task_are_refused(model_file: MakeModel, spec: TensorSpec, words: str) -> None:
    assert words in only_problem(look(model_file(), None, Task(TaskName("t"), (spec,), TASK.outputs)))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (TensorSpec("scores", Datatype.FP32, (-1, 9)), "dimension 1 is 3 in the model and 9 in task"),
        (TensorSpec("scores", Datatype.INT64, (-1, 3)), "cannot be cast without loss of meaning"),
        (TensorSpec("scores", Datatype.FP32, (-1,)), "has 2 dimensions"),
    ],
)
def test_outputs_that_do_not_fit_the_task_are_refused(model_file: MakeModel, spec: TensorSpec, words: str) -> None:
    assert words in only_problem(look(model_file(), None, Task(TaskName("t"), TASK.inputs, (spec,))))


def test_a_map_of_what_is_not_there_is_refused(model_file: MakeModel) -> None:
    assert "no input or output 'nope'" in only_problem(look(model_file(), mapping={"nope": "x"}))


def test_a_fixed_batch_is_taken_with_a_warning(model_file: MakeModel, data_file: MakeData) -> None:
    answer = look(model_file(batch=(1, 1)), data_file())
    assert (answer.problems, answer.fixed_batch) == ((), 1)
    assert "exactly 1 item at a time" in answer.warnings[0]
    assert look(model_file(batch=(8, 8)), data_file()).fixed_batch == 8


def test_a_dynamic_batch_that_cannot_hold_two_items_is_refused(model_file: MakeModel, data_file: MakeData) -> None:
    shape = helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.array([1, 3])))
    reshape = helper.make_node("Reshape", ["scores", "one"], ["flat"])
    info = helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["N", 3])
    path = model_file(outputs=(), extra=[shape, reshape], extra_outputs=[info])
    assert "cannot run two items at once" in only_problem(look(path, data_file(), None))


def test_outputs_without_a_batch_dimension_are_refused(model_file: MakeModel, data_file: MakeData) -> None:
    total = helper.make_node("ReduceSum", ["scores"], ["total"], keepdims=0)
    info = helper.make_tensor_value_info("total", TensorProto.FLOAT, [])
    path = model_file(outputs=(), extra=[total], extra_outputs=[info])
    assert "no batch dimension" in only_problem(look(path, None, None))


# Adaptation


def test_names_and_types_are_written_into_the_graph(model_file: MakeModel, data_file: MakeData) -> None:
    task = Task(
        TaskName("t"),
        (TensorSpec("image", Datatype.FP32, (-1, 4)),),
        (TensorSpec("prob", Datatype.FP32, (-1, 3)), TensorSpec("label", Datatype.INT32, (-1,))),
    )
    path = model_file(dtype=TensorProto.DOUBLE, outputs=("scores", "label"))
    x = np.random.default_rng(0).random((5, 4))
    data = data_file(image=x.astype("f4").repeat(8, 0), label=np.zeros(40, int))
    answer = look(path, data, task, mapping={"x": "image", "scores": "prob"})
    assert answer.problems == ()
    found = run(path, image=x.astype("f4"))
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    scores, label = plain.run(["scores", "label"], {"x": x.astype("f4").astype("f8")})
    assert found["prob"].dtype == np.float32
    np.testing.assert_allclose(found["prob"], scores, rtol=1e-6)
    np.testing.assert_array_equal(found["label"], label)
    assert found["label"].dtype == np.int32


def test_a_label_is_made_from_scores_when_the_task_wants_one(model_file: MakeModel, data_file: MakeData) -> None:
    task = Task(TaskName("t"), TASK.inputs, (TensorSpec("label", Datatype.INT64, (-1,)),))
    path = model_file()
    answer = look(path, data_file(), task)
    assert answer.problems == ()
    assert "made from the greatest score" in answer.warnings[0]
    x = np.eye(4, dtype="f4")
    assert list(run(path, x=x)) == ["label"]
    np.testing.assert_array_equal(run(path, x=x)["label"], [2, 2, 2, 2])


def test_names_may_be_swapped_and_may_clash_with_inner_ones(model_file: MakeModel, data_file: MakeData) -> None:
    task = Task(TaskName("t"), (TensorSpec("W", Datatype.FP32, (-1, 4)),), (TensorSpec("x", Datatype.FP32, (-1, 3)),))
    path = model_file()
    rows = np.ones((40, 4), "f4")
    answer = look(path, data_file(W=rows, label=np.zeros(40, int)), task, mapping={"x": "W", "scores": "x"})
    assert answer.problems == ()
    np.testing.assert_allclose(run(path, W=rows[:2])["x"], [[-2, 2, 6]] * 2)


def test_an_input_that_a_branch_reads_from_outside_is_renamed_there_too(model_file: MakeModel) -> None:
    double = helper.make_node("Add", ["x", "x"], ["twice"])
    branch = helper.make_graph([double], "b", [], [helper.make_tensor_value_info("twice", TensorProto.FLOAT, None)])
    flag = helper.make_node("Constant", [], ["flag"], value=numpy_helper.from_array(np.array(True)))
    choice = helper.make_node("If", ["flag"], ["chosen"], then_branch=branch, else_branch=branch)
    info = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, ["N", 4])
    path = model_file(outputs=(), extra=[flag, choice], extra_outputs=[info])
    outputs = (TensorSpec("twice", Datatype.FP64, (-1, 4)),)
    task = Task(TaskName("t"), (TensorSpec("image", Datatype.FP32, (-1, 4)),), outputs)
    answer = look(path, None, task, mapping={"x": "image", "chosen": "twice"})
    assert answer.problems == (), answer.problems
    rows = np.ones((3, 4), "f4")
    np.testing.assert_array_equal(run(path, image=rows)["twice"], rows.astype("f8") * 2)


def test_a_value_that_is_input_and_output_at_once_is_refused(model_file: MakeModel) -> None:
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    assert "'x' is an input and an output at once" in only_problem(look(model_file(extra_outputs=[info]), None, None))


# Evaluation data


def test_all_problems_come_at_once(model_file: MakeModel, data_file: MakeData) -> None:
    task = Task(TaskName("t"), (TensorSpec("x", Datatype.FP32, (-1, 9)),), (TensorSpec("y", Datatype.FP32, (-1, 3)),))
    path = model_file(opset=99)
    answer = look(path, data_file(x=ROWS.astype("f8"), label=LABELS), task, mapping={"nope": "z"})
    words = ["opset 99", "dimension 1 is 4", "lacks output 'y'", "'nope'", "astype('float32')"]
    for word in words:
        assert any(word in p for p in answer.problems), (word, answer.problems)
