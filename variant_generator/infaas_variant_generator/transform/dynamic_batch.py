"""Rewrites a graph that insists on one batch size into one that takes any.

Exporters that trace a model with one sample bake its batch size in: into the declared shapes, into the constants that
reshapes take their target from, into the initial states of recurrent layers. Declared shapes are loosened; the
constants are found by asking shape inference what becomes of a batch so odd that its multiples give it away.

Nothing here proves that the new graph answers like the old one; `rebatch` runs both and compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

PROBE = 7919
"""A prime that no real dimension is a multiple of."""
BATCH = "batch"
_COUNT = "infaas_batch_count"
_RECURRENT = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""Which of their inputs are initial states, one for each item."""
_TARGETS = ("Reshape", "Expand")

Shape = tuple[int | None, ...]


def batch_axis(before: Sequence[int], axis: int, after: Sequence[int], batch: int) -> int | None:
    """The axis of a reshape's result that the batch ends up in, or None when there is none.

    A reshape keeps the row-major order, so the batch lands where as many elements lie outside of an axis as lay outside
    of the axis it came from; else in an axis that it is merged into.
    """
    outside = prod(before[:axis])
    for index, size in enumerate(after):
        if prod(after[:index]) == outside and size % batch == 0:
            return index
    for index, size in enumerate(after):
        held = prod(after[:index])
        if held and outside % held == 0 and held * size % (outside * batch) == 0:
            return index
    return None


def with_dynamic_batch(model: Any, batch: int) -> tuple[Any, int]:
    """A copy of the model whose inputs and outputs have a free first dimension, and how many constants had to change.

    Raises what shape inference raises for a graph it cannot follow at all.
    """
    import onnx
    from onnx import shape_inference

    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.value_info[:]
    known = _shapes(shape_inference.infer_shapes(made, data_prop=True))
    _declare(made.graph.input, PROBE)
    _declare(made.graph.output, None)
    changed = _free_states(made, batch)
    guessed: set[str] = set()
    for _ in range(len(made.graph.node) + 1):
        probed = _shapes(shape_inference.infer_shapes(made, data_prop=True))
        fixed = sum(_fix(made, node, known, probed, batch) for node in list(made.graph.node))
        if not fixed:
            fixed = _guess_first(made, known, probed, batch, guessed)
        if not fixed:
            break
        changed += fixed
    _declare(made.graph.input, BATCH)
    _declare(made.graph.output, BATCH)
    return made, changed


def _declare(infos: Any, size: int | str | None) -> None:
    """Write the first dimension of each tensor."""
    for info in infos:
        dimension = info.type.tensor_type.shape.dim[0]
        dimension.Clear()
        if isinstance(size, int):
            dimension.dim_value = size
        elif size is not None:
            dimension.dim_param = size


def _shapes(model: Any) -> dict[str, Shape]:
    """Of every value whose rank is known."""
    found: dict[str, Shape] = {}
    graph = model.graph
    for info in (*graph.input, *graph.value_info, *graph.output):
        kind = info.type.tensor_type
        if info.type.HasField("tensor_type") and kind.HasField("shape"):
            found[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    for tensor in graph.initializer:
        found[tensor.name] = tuple(tensor.dims)
    return found


def _fix(model: Any, node: Any, known: Mapping[str, Shape], probed: Mapping[str, Shape], batch: int) -> int:
    """Put the batch into the constant target of a reshape that the batch reaches; 1 when that changed something."""
    if node.op_type != "Reshape" or _constant(model.graph, node.input[1]) is None:
        return 0
    source, result = probed.get(node.input[0]), probed.get(node.output[0])
    before, after = known.get(node.input[0]), known.get(node.output[0])
    if source is None or before is None or after is None or None in before or None in after:
        return 0
    reached = [axis for axis, size in enumerate(source) if size is not None and size % PROBE == 0 and size > 0]
    if not reached:
        return 0
    whole = [size or 0 for size in after]
    axis = batch_axis([size or 0 for size in before], reached[0], whole, batch)
    if axis is None:
        return 0
    wanted = [size * PROBE // batch if index == axis else size for index, size in enumerate(whole)]
    target = [-1 if index == axis else size for index, size in enumerate(whole)]
    if list(result or ()) == wanted or _constant(model.graph, node.input[1]) == target:
        return 0
    _set_target(model, node, target)
    return 1


def _guess_first(
    model: Any, known: Mapping[str, Shape], probed: Mapping[str, Shape], batch: int, guessed: set[str]
) -> int:
    """Where inference does not reach: take a leading constant that is the batch size for the batch."""
    for node in model.graph.node:
        if node.op_type not in _TARGETS or node.output[0] in guessed:
            continue
        target = _constant(model.graph, node.input[1])
        if target is None or not target or target[0] != batch:
            continue
        guessed.add(node.output[0])
        is_followed = None not in (known.get(node.input[0]) or (None,)) and node.input[0] in probed
        if node.op_type == "Expand":
            _expand(model, node, target)
        elif is_followed:
            continue
        else:
            _set_target(model, node, [0 if -1 in target else -1, *target[1:]])
        return 1
    return 0


def _set_target(model: Any, node: Any, target: Sequence[int]) -> None:
    """A constant of the node's own: others may share the old one."""
    import numpy as np
    from onnx import numpy_helper

    name = f"infaas_target_{node.output[0]}"
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.initializer.append(numpy_helper.from_array(np.array(target, dtype=np.int64), name))
    node.input[1] = name


def _expand(model: Any, node: Any, target: Sequence[int]) -> None:
    """Have a value expanded to as many items as the inputs have."""
    node.input[1] = _counted_shape(model, f"infaas_target_{node.output[0]}", [], target[1:])


def _free_states(model: Any, batch: int) -> int:
    """Recurrent layers whose initial states are constants, the same for every item: drop zeros (they are the default),
    expand others to the batch at hand."""
    changed = 0
    for node in list(model.graph.node):
        axis = 0 if _attribute(node, "layout") == 1 else 1
        for at in _RECURRENT.get(node.op_type, ()):
            if len(node.input) <= at or not node.input[at]:
                continue
            state = _initializer(model.graph, node.input[at])
            if state is None or state.ndim != 3 or state.shape[axis] != batch:
                continue
            if not state.any():
                node.input[at] = ""
                changed += 1
            elif bool((state == state.take([0], axis=axis)).all()):
                _expand_state(model, node, at, state.take([0], axis=axis), axis)
                changed += 1
    return changed


def _expand_state(model: Any, node: Any, at: int, state: Any, axis: int) -> None:
    from onnx import helper, numpy_helper

    name = f"infaas_state_{node.output[0] or node.output[1]}_{at}"
    model.graph.initializer.append(numpy_helper.from_array(state, f"{name}_one"))
    shape = _counted_shape(model, f"{name}_shape", list(state.shape[:axis]), list(state.shape[axis + 1 :]))
    place = next(index for index, other in enumerate(model.graph.node) if other.output[0] == shape) + 1
    model.graph.node.insert(place, helper.make_node("Expand", [f"{name}_one", shape], [name]))
    node.input[at] = name


def _counted_shape(model: Any, name: str, outer: Sequence[int], inner: Sequence[int]) -> str:
    """The name of a shape whose one dimension is the number of items of the first input."""
    import numpy as np
    from onnx import helper, numpy_helper

    graph = model.graph
    nodes = []
    if not any(_COUNT in node.output for node in graph.node):
        graph.initializer.append(numpy_helper.from_array(np.zeros(1, dtype=np.int64), f"{_COUNT}_axis"))
        nodes.append(helper.make_node("Shape", [graph.input[0].name], [f"{_COUNT}_shape"]))
        nodes.append(helper.make_node("Gather", [f"{_COUNT}_shape", f"{_COUNT}_axis"], [_COUNT], axis=0))
        place = 0
    else:
        place = next(index for index, node in enumerate(graph.node) if _COUNT in node.output) + 1
    parts = []
    for what, sizes in (("outer", outer), ("", None), ("inner", inner)):
        if sizes is None:
            parts.append(_COUNT)
        elif sizes:
            parts.append(f"{name}_{what}")
            graph.initializer.append(numpy_helper.from_array(np.array(sizes, dtype=np.int64), parts[-1]))
    nodes.append(helper.make_node("Concat", parts, [name], axis=0))
    for offset, node in enumerate(nodes):
        graph.node.insert(place + offset, node)
    return name


def _constant(graph: Any, name: str) -> list[int] | None:
    """A constant shape's values."""
    array = _initializer(graph, name)
    return None if array is None or array.ndim != 1 else [int(size) for size in array]


def _initializer(graph: Any, name: str) -> Any:
    """A constant's array, whether it is an initializer or a node; None for any other value."""
    from onnx import numpy_helper

    for tensor in graph.initializer:
        if tensor.name == name:
            return None if tensor.data_location else numpy_helper.to_array(tensor)
    for node in _constants(graph):
        if node.output[0] == name:
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            return None if value is None else numpy_helper.to_array(value)
    return None


def _constants(graph: Any) -> Iterator[Any]:
    return (node for node in graph.node if node.op_type == "Constant")


def _attribute(node: Any, name: str) -> int | None:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), None)
