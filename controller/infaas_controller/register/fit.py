"""How a model fits a task: which input and output becomes which, what has to be cast, and what does not fit.

Pure: it works on facts about the graph that `graph` has read, and `adapt` carries out what is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, TensorSpec

MAX_TENSORS = 256
MAX_NAME_LENGTH = 256
MAX_RANK = 16
MAX_DIM = 2**31 - 1
MAX_ITEM_BYTES = 2**31
_FLOATS = (Datatype.FP16, Datatype.FP32, Datatype.FP64)


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """An input or output as the graph declares it. `datatype` None: its type, in `kind`, is none that can be served."""

    name: str
    datatype: Datatype | None
    kind: str
    shape: tuple[int | None, ...] | None
    """None as a dimension: dynamic; None as a whole: not even the rank is declared."""

    def __str__(self) -> str:
        if self.datatype is None:
            return f"{self.name!r} ({self.kind})"
        return f"{self.name!r} ({self.datatype} {_shape_text(self.shape)})"


@dataclass(frozen=True, slots=True)
class Edit:
    """One tensor's way across the border of the graph: from the model's name and type to the task's, or back."""

    theirs: str
    ours: str
    model_type: Datatype
    task_type: Datatype
    is_argmax: bool = False
    """The output is the index of the greatest score in each row of `theirs`."""


@dataclass(frozen=True, slots=True)
class Fit:
    inputs: tuple[Edit, ...] = ()
    outputs: tuple[Edit, ...] = ()
    task_inputs: tuple[TensorSpec, ...] = ()
    task_outputs: tuple[TensorSpec, ...] = ()
    fixed_batch: int | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def fit(
    inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor], mapping: Mapping[str, str], task: Task | None
) -> Fit:
    """Decide everything at once; the result's edits mean something only when it has no problems."""
    problems = _border_problems(inputs, outputs) + _mapping_problems(inputs, outputs, mapping)
    warnings: list[str] = []
    fixed_batch = _fixed_batch(inputs, problems, warnings)
    if task is None:
        edits_in = _as_they_are(inputs, mapping, "input", problems)
        edits_out = _as_they_are(outputs, mapping, "output", problems)
        specs_in = _specs(inputs, mapping)
        specs_out = _specs(outputs, mapping)
    else:
        edits_in = _fit_inputs(inputs, mapping, task, problems, warnings)
        edits_out = _fit_outputs(outputs, mapping, task, problems, warnings)
        specs_in, specs_out = task.inputs, task.outputs
    for name in sorted({edit.ours for edit in edits_in} & {edit.ours for edit in edits_out}):
        problems.append(f"{name!r} is an input and an output at once; give the model's output another name")
    for output in outputs:
        is_kept = any(edit.theirs == output.name for edit in edits_out)
        if is_kept and output.shape is not None and len(output.shape) == 0:
            problems.append(f"output {output} has no batch dimension: a task's outputs hold one row per item")
    return Fit(
        tuple(edits_in), tuple(edits_out), specs_in, specs_out, fixed_batch, tuple(problems), tuple(warnings)
    )  # fmt: skip


def _border_problems(inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor]) -> list[str]:
    """What no input or output may be, whatever task it is for."""
    problems = []
    for what, tensors in (("input", inputs), ("output", outputs)):
        if len(tensors) > MAX_TENSORS:
            problems.append(f"the model has {len(tensors):,} {what}s; at most {MAX_TENSORS} are taken")
        for tensor in tensors[:MAX_TENSORS]:
            problems += [f"{what} {problem}" for problem in _tensor_problems(tensor)]
    return problems


def _tensor_problems(tensor: GraphTensor) -> list[str]:
    name, shape = tensor.name, tensor.shape or ()
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        return [f"name {_quoted(name)} must be 1 to {MAX_NAME_LENGTH} printable characters"]
    if len(shape) > MAX_RANK:
        return [f"{_quoted(name)} has {len(shape)} dimensions; at most {MAX_RANK} are taken"]
    # A batch dimension of 0 has words of its own.
    wrong = [size for axis, size in enumerate(shape) if size is not None and not min(axis, 1) <= size <= MAX_DIM]
    if wrong:
        return [f"{_quoted(name)} has a dimension of {wrong[0]}; dimensions are from 1 to {MAX_DIM}, or dynamic"]
    size = max(1, tensor.datatype.itemsize if tensor.datatype else 1) * math.prod(d for d in shape if d is not None)
    if size > MAX_ITEM_BYTES:
        return [
            f"{_quoted(name)} takes {size:,} bytes, its fixed dimensions alone; at most {MAX_ITEM_BYTES:,} are taken"
        ]
    return []


def _quoted(name: str) -> str:
    text = repr(name[:80])
    return text if len(name) <= 80 else f"{text}..."


def _mapping_problems(
    inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor], mapping: Mapping[str, str]
) -> list[str]:
    known = {tensor.name for tensor in (*inputs, *outputs)}
    problems = [
        f"--map {theirs}=...: the model has no input or output {theirs!r}; it has {_listed(known)}"
        for theirs in mapping
        if theirs not in known
    ]
    for what, tensors in (("input", inputs), ("output", outputs)):
        taken: dict[str, str] = {}
        for tensor in tensors:
            ours = mapping.get(tensor.name, tensor.name)
            if ours in taken:
                problems.append(f"--map makes two {what}s {ours!r}: {taken[ours]!r} and {tensor.name!r}")
            taken[ours] = tensor.name
    if not inputs:
        problems.append("the model has no inputs")
    if not outputs:
        problems.append("the model has no outputs")
    return problems


def _fixed_batch(inputs: Sequence[GraphTensor], problems: list[str], warnings: list[str]) -> int | None:
    """The batch size that the graph insists on; None when any will do."""
    sizes: dict[int, str] = {}
    for tensor in inputs:
        if tensor.shape is None:
            problems.append(f"input {tensor.name!r} declares no shape; export the model with the rank of its inputs")
        elif not tensor.shape:
            problems.append(f"input {tensor} has no batch dimension: the first dimension of every input counts items")
        elif tensor.shape[0] == 0:
            problems.append(f"input {tensor} has a batch dimension of 0; make it dynamic")
        elif tensor.shape[0] is not None:
            sizes[tensor.shape[0]] = tensor.name
    if len(sizes) > 1:
        found = ", ".join(f"{name!r} takes {size}" for size, name in sorted(sizes.items()))
        problems.append(f"the inputs' batch dimensions differ: {found}; make them dynamic")
    if len(sizes) != 1:
        return None
    size = next(iter(sizes))
    items = f"{size} item{'s' if size > 1 else ''}"
    warnings.append(
        f"the batch dimension is fixed to {size}: the model runs exactly {items} at a time; variants take any batch if "
        "it can be rewritten; else export it with a dynamic batch dimension to let queries share a run"
    )
    return size


def _as_they_are(
    tensors: Sequence[GraphTensor], mapping: Mapping[str, str], what: str, problems: list[str]
) -> list[Edit]:
    edits = []
    for tensor in tensors:
        if tensor.datatype is None:
            problems.append(f"{what} {unservable(tensor)}")
        else:
            ours = mapping.get(tensor.name, tensor.name)
            edits.append(Edit(tensor.name, ours, tensor.datatype, tensor.datatype))
    return edits


def _specs(tensors: Sequence[GraphTensor], mapping: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """What a new task says of these tensors: dimension 0 counts items, whatever the graph declares."""
    return tuple(
        TensorSpec(
            mapping.get(t.name, t.name), t.datatype, (-1, *(-1 if d is None else d for d in (t.shape or ())[1:]))
        )
        for t in tensors
        if t.datatype is not None
    )


def _fit_inputs(
    inputs: Sequence[GraphTensor], mapping: Mapping[str, str], task: Task, problems: list[str], warnings: list[str]
) -> list[Edit]:
    by_name = {mapping.get(tensor.name, tensor.name): tensor for tensor in inputs}
    wanted = {spec.name: spec for spec in task.inputs}
    spare = [tensor for name, tensor in by_name.items() if name not in wanted]
    edits = []
    for spec in task.inputs:
        tensor = by_name.get(spec.name)
        if tensor is None:
            hint = _hint(spec, spare)
            problems.append(
                f"the model lacks input {spec.name!r} ({spec.datatype} {_spec_text(spec)}) of task {task.name!r}{hint}"
            )
            continue
        problems += _shape_problems("input", tensor, spec, task)
        if tensor.datatype is None:
            problems.append(f"input {unservable(tensor)}")
        elif not _is_castable(spec.datatype, tensor.datatype):
            problems.append(
                f"input {spec.name!r} is {tensor.datatype} in the model and {spec.datatype} in task {task.name!r}: "
                "that cannot be cast without loss of meaning"
            )
        else:
            edits.append(Edit(tensor.name, spec.name, tensor.datatype, spec.datatype))
            if _is_narrowing(spec.datatype, tensor.datatype):
                warnings.append(f"input {spec.name!r} is cast from {spec.datatype} to the narrower {tensor.datatype}")
    for tensor in spare:
        problems.append(
            f"the model's input {tensor} is none of task {task.name!r}: {_listed(wanted)}; use --map {tensor.name}=..."
        )
    return edits


def _fit_outputs(
    outputs: Sequence[GraphTensor], mapping: Mapping[str, str], task: Task, problems: list[str], warnings: list[str]
) -> list[Edit]:
    by_name = {mapping.get(tensor.name, tensor.name): tensor for tensor in outputs}
    wanted = {spec.name for spec in task.outputs}
    spare = [tensor for name, tensor in by_name.items() if name not in wanted]
    edits: list[Edit] = []
    for spec in task.outputs:
        tensor = by_name.get(spec.name)
        if tensor is None:
            scores = _scores(spec, outputs)
            if scores is not None and scores.datatype is not None:
                edits.append(Edit(scores.name, spec.name, scores.datatype, spec.datatype, is_argmax=True))
                warnings.append(f"output {spec.name!r} is made from the greatest score in {scores.name!r}")
                continue
            hint = _hint(spec, spare)
            problems.append(
                f"the model lacks output {spec.name!r} ({spec.datatype} {_spec_text(spec)}) of task {task.name!r}{hint}"
            )
            continue
        problems += _shape_problems("output", tensor, spec, task)
        if tensor.datatype is None:
            problems.append(f"output {unservable(tensor)}")
        elif not _is_castable(tensor.datatype, spec.datatype):
            problems.append(
                f"output {spec.name!r} is {tensor.datatype} in the model and {spec.datatype} in task {task.name!r}: "
                "that cannot be cast without loss of meaning"
            )
        else:
            edits.append(Edit(tensor.name, spec.name, tensor.datatype, spec.datatype))
            if _is_narrowing(tensor.datatype, spec.datatype):
                warnings.append(f"output {spec.name!r} is cast from {tensor.datatype} to the narrower {spec.datatype}")
    used = {edit.theirs for edit in edits}
    dropped = [tensor.name for tensor in outputs if tensor.name not in used]
    if dropped:
        warnings.append(f"outputs that task {task.name!r} does not name are dropped: {_listed(dropped)}")
    return edits


def _scores(spec: TensorSpec, outputs: Sequence[GraphTensor]) -> GraphTensor | None:
    """The one output of per-class scores that a class index can be made from."""
    is_index = len(spec.shape) == 1 and spec.datatype in (Datatype.INT64, Datatype.INT32)
    if spec.name != "label" or not is_index:
        return None
    found = [t for t in outputs if t.datatype in _FLOATS and t.shape is not None and len(t.shape) == 2]
    return found[0] if len(found) == 1 else None


def _shape_problems(what: str, tensor: GraphTensor, spec: TensorSpec, task: Task) -> list[str]:
    if tensor.shape is None or not tensor.shape:
        return []  # said elsewhere, or known only when the graph runs
    if len(tensor.shape) != len(spec.shape):
        return [
            f"{what} {spec.name!r} has {len(tensor.shape)} dimensions {_shape_text(tensor.shape)} in the model "
            f"and {len(spec.shape)} {_spec_text(spec)} in task {task.name!r}"
        ]
    problems = []
    for axis, (theirs, ours) in enumerate(zip(tensor.shape, spec.shape, strict=True)):
        is_wrong = axis > 0 and theirs is not None and theirs != ours and (ours != -1 or what == "input")
        if is_wrong:
            problems.append(
                f"{what} {spec.name!r}: dimension {axis} is {theirs} in the model and "
                f"{'any' if ours == -1 else ours} in task {task.name!r}"
            )
    return problems


def unservable(tensor: GraphTensor) -> str:
    """Why a tensor's type cannot be served, with the usual cure."""
    if "map" in tensor.kind or "sequence" in tensor.kind:
        return (
            f"{tensor.name!r} is a {tensor.kind}, not a tensor; scikit-learn classifiers export tensors with "
            "convert_sklearn(..., options={'zipmap': False})"
        )
    return f"{tensor.name!r} has the type {tensor.kind}, which cannot be served; use one of {_listed(Datatype)}"


def _is_castable(source: Datatype, target: Datatype) -> bool:
    """Whether a value keeps its meaning: numbers to numbers, but never fractions to integers or to truth values."""
    if source is target:
        return True
    if Datatype.BYTES in (source, target) or target is Datatype.BOOL:
        return False
    return target in _FLOATS or source not in _FLOATS


def _is_narrowing(source: Datatype, target: Datatype) -> bool:
    return target.itemsize < source.itemsize


def _hint(spec: TensorSpec, spare: Sequence[GraphTensor]) -> str:
    alike = [t for t in spare if t.shape is None or len(t.shape) == len(spec.shape)]
    if not alike:
        return f"; it has {', '.join(str(t) for t in spare)}" if spare else ""
    return f"; it has {', '.join(str(t) for t in alike)}: add --map {alike[0].name}={spec.name}"


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(str(name) for name in names)) or "none"


def _shape_text(shape: tuple[int | None, ...] | None) -> str:
    if shape is None:
        return "of undeclared shape"
    return "[" + ", ".join("-1" if d is None else str(d) for d in shape) + "]"


def _spec_text(spec: TensorSpec) -> str:
    return "[" + ", ".join(map(str, spec.shape)) + "]"
