"""Loads the adapted graph into the installed ONNX Runtime and runs it once: the only proof that it can be served.

Runs in the inspecting subprocess only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from infaas.domain.tensor import Datatype, TensorSpec

TRIAL_ROWS = 2
"""Enough to see whether a dynamic batch dimension is one throughout the graph."""
_NUMPY = {
    Datatype.BOOL: "bool", Datatype.INT8: "int8", Datatype.INT16: "int16", Datatype.INT32: "int32",
    Datatype.INT64: "int64", Datatype.UINT8: "uint8", Datatype.UINT16: "uint16", Datatype.UINT32: "uint32",
    Datatype.UINT64: "uint64", Datatype.FP16: "float16", Datatype.FP32: "float32", Datatype.FP64: "float64",
    Datatype.BYTES: "object",
}  # fmt: skip
Arrays = Mapping[str, np.ndarray[Any, Any]]


def support_problems(model: onnx.ModelProto) -> list[str]:
    """Whether the installed runtime takes this file's format and opset, and which it would take."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    installed = f"the installed ONNX Runtime {onnxruntime.__version__}"
    problems = []
    if not _is_loadable(model.ir_version, 9):
        newest = next((ir for ir in range(onnx.IR_VERSION, 3, -1) if _is_loadable(ir, 9)), 0)
        problems.append(f"IR version {model.ir_version} is not supported: {installed} takes up to {newest}")
    if opset is not None and not _is_loadable(8, opset):
        newest = next((o for o in range(onnx.defs.onnx_opset_version(), 7, -1) if _is_loadable(8, o)), 0)
        problems.append(
            f"opset {opset} is not supported: {installed} takes up to {newest}; "
            f"export the model with opset_version={newest}"
        )
    return problems


def try_model(
    path: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    fixed_batch: int | None,
    sample: Arrays | None,
) -> tuple[list[str], list[str], tuple[TensorSpec, ...]]:
    """Problems, warnings, and the outputs' specifications as far as the run could fill them in."""
    try:
        session = _session(path.read_bytes() if path.stat().st_size < 2**26 else str(path))
    except _RuntimeErrors as error:
        return [f"ONNX Runtime cannot load the model: {short(error)}"], [], tuple(outputs)
    rows = fixed_batch or TRIAL_ROWS
    is_guess = sample is None
    if sample is None:
        sample = {spec.name: _made_up(spec, rows) for spec in inputs}
    try:
        answers = session.run([spec.name for spec in outputs], {name: _fed(array) for name, array in sample.items()})
    except _RuntimeErrors as error:
        if is_guess and any(-1 in spec.shape[1:] for spec in inputs):
            return [], [f"the model was not tried: made-up inputs do not suit it ({short(error)})"], tuple(outputs)
        return [_run_problem(session, sample, fixed_batch, error)], [], tuple(outputs)
    problems: list[str] = []
    specs = tuple(
        _compare(spec, np.asarray(answer), rows, problems) for spec, answer in zip(outputs, answers, strict=True)
    )
    warnings = [
        f"output {spec.name!r} was not finite on the first rows"
        for spec, answer in zip(outputs, answers, strict=True)
        if not is_guess and np.asarray(answer).dtype.kind == "f" and not np.isfinite(np.asarray(answer)).all()
    ]
    return problems, warnings, specs


def _run_problem(session: Any, sample: Arrays, fixed_batch: int | None, error: Exception) -> str:
    if fixed_batch is None and len(next(iter(sample.values()))) > 1:
        try:
            session.run(None, {name: _fed(array[:1]) for name, array in sample.items()})
        except _RuntimeErrors:
            pass  # one row fails as well: the batch dimension is not to blame
        else:
            return (
                "the model declares a dynamic batch dimension but cannot run two items at once: "
                f"{short(error)}; export it with a batch dimension that is dynamic throughout, or fixed to 1"
            )
    return f"the model cannot be run: {short(error)}"


def _compare(spec: TensorSpec, answer: np.ndarray[Any, Any], rows: int, problems: list[str]) -> TensorSpec:
    if answer.ndim == 0 or answer.shape[0] != rows:
        problems.append(
            f"output {spec.name!r} has the shape {list(answer.shape)} for {rows} items; "
            f"its first dimension must be {rows}"
        )
        return spec
    if len(spec.shape) == 1 and answer.ndim > 1:
        return TensorSpec(spec.name, spec.datatype, (-1, *answer.shape[1:]))
    if not spec.admits(answer.shape):
        problems.append(f"output {spec.name!r} has the shape {list(answer.shape)}; it must be {list(spec.shape)}")
    return spec


def _made_up(spec: TensorSpec, rows: int) -> np.ndarray[Any, Any]:
    shape = (rows, *(1 if size == -1 else size for size in spec.shape[1:]))
    if spec.datatype is Datatype.BYTES:
        return np.full(shape, "", dtype=object)
    return np.zeros(shape, dtype=_NUMPY[spec.datatype])


def _fed(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As ONNX Runtime takes it: text as objects."""
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8").astype(object)
    return array.astype(object) if array.dtype.kind == "U" else array


def _session(model: str | bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _is_loadable(ir_version: int, opset: int) -> bool:
    """Whether the smallest possible model with these stamps loads."""
    border = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", border[:1], border[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    try:
        _session(model.SerializeToString())
    except _RuntimeErrors:
        return False
    return True


_STATE = onnxruntime.capi.onnxruntime_pybind11_state
_RuntimeErrors: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    TypeError,
    _STATE.Fail,
    _STATE.InvalidArgument,
    _STATE.InvalidGraph,
    _STATE.InvalidProtobuf,
    _STATE.NoSuchFile,
    _STATE.NotImplemented,
    _STATE.RuntimeException,
)
_SOURCE = re.compile(r"(/\S*onnxruntime\S*:\d+ )|(\[ONNXRuntimeError\] : \d+ : )")


def short(error: BaseException) -> str:
    text = " ".join(_SOURCE.sub("", str(error)).split())
    return text if len(text) <= 300 else text[:297] + "..."
