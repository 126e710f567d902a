"""Writes a fit into the graph: its inputs and outputs get the task's names and types, the rest of the graph stays.

Afterwards models from different frameworks are interchangeable behind one task, and no caller or worker has to know
what an exporter called things. Runs in the inspecting subprocess only.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import helper, inliner

from infaas.domain.tensor import Datatype, TensorSpec
from infaas_controller.register.fit import Edit, Fit
from infaas_controller.register.graph import ELEMENT_TYPES, nodes, subgraphs

BATCH = "batch"
"""The one name of a dynamic batch dimension."""
_DEFAULT_OPSET = 17
_FIRST_IR_WITHOUT_INITIALIZERS_AS_INPUTS = 4


def adapt(model: onnx.ModelProto, fit: Fit) -> onnx.ModelProto:
    """A new model that speaks the task's names and types; the given one may be changed too."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    graph = model.graph
    model.ir_version = max(model.ir_version, _FIRST_IR_WITHOUT_INITIALIZERS_AS_INPUTS)
    if not any(entry.domain in ("", "ai.onnx") for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", _DEFAULT_OPSET))
    _forget_stale(graph)
    sources = _free_names(graph, fit)
    _write_outputs(graph, fit.outputs, sources)
    _write_inputs(graph, fit.inputs, sources)
    _declare(graph, fit)
    _drop_unused(graph)
    return model


def _forget_stale(graph: onnx.GraphProto) -> None:
    """Initializers stop being inputs; shapes noted for inner values no longer have to hold."""
    constants = {tensor.name for tensor in graph.initializer}
    kept = [info for info in graph.input if info.name not in constants]
    del graph.input[:]
    graph.input.extend(kept)
    del graph.value_info[:]


def _free_names(graph: onnx.GraphProto, fit: Fit) -> dict[tuple[str, str], str]:
    """Give every border tensor an inner name of ours, so that the task's names are free; returns them by (side, name).

    An output that is an input or a constant passes through a node of its own: one value cannot have two names.
    """
    constants = {tensor.name for tensor in graph.initializer} | {
        tensor.values.name for tensor in graph.sparse_initializer
    }
    names: dict[tuple[str, str], str] = {}
    taken = _value_names(graph) | {edit.ours for edit in (*fit.inputs, *fit.outputs)}
    borders = {info.name for info in graph.input} | constants
    for edit in fit.outputs:
        key = ("output", edit.theirs)
        if key in names:
            continue
        names[key] = _fresh(f"infaas_out_{edit.theirs}", taken)
        if edit.theirs in borders:
            graph.node.append(helper.make_node("Identity", [edit.theirs], [names[key]]))
        else:
            _rename(graph, edit.theirs, names[key])
    for edit in fit.inputs:
        names["input", edit.theirs] = _fresh(f"infaas_in_{edit.theirs}", taken)
        _rename(graph, edit.theirs, names["input", edit.theirs])
    for ours in sorted({edit.ours for edit in (*fit.inputs, *fit.outputs)} & _value_names(graph)):
        _rename(graph, ours, _fresh(f"infaas_{ours}", taken))
    return names


def _write_outputs(graph: onnx.GraphProto, edits: Iterable[Edit], sources: dict[tuple[str, str], str]) -> None:
    """End every output in a node that gives it its name; the optimiser folds those that do nothing else."""
    for edit in edits:
        source, produced = sources["output", edit.theirs], edit.model_type
        if edit.is_argmax:
            index = f"{source}_argmax"
            graph.node.append(helper.make_node("ArgMax", [source], [index], axis=1, keepdims=0))
            source, produced = index, Datatype.INT64
        if produced is edit.task_type:
            graph.node.append(helper.make_node("Identity", [source], [edit.ours]))
        else:
            graph.node.append(_cast(source, edit.ours, ELEMENT_TYPES[edit.task_type]))


def _write_inputs(graph: onnx.GraphProto, edits: Iterable[Edit], sources: dict[tuple[str, str], str]) -> None:
    for edit in edits:
        source = sources["input", edit.theirs]
        if edit.model_type is edit.task_type:
            _rename(graph, source, edit.ours)
        else:
            graph.node.insert(0, _cast(edit.ours, source, ELEMENT_TYPES[edit.model_type]))


def _cast(source: str, target: str, element_type: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=element_type)


def _declare(graph: onnx.GraphProto, fit: Fit) -> None:
    """Write the borders anew: the task's specifications, with one batch dimension for all of them."""
    del graph.input[:]
    del graph.output[:]
    batch = fit.fixed_batch or BATCH
    inputs = {spec.name: spec for spec in fit.task_inputs}
    outputs = {spec.name: spec for spec in fit.task_outputs}
    graph.input.extend(_info(inputs[edit.ours], batch) for edit in fit.inputs)
    graph.output.extend(_info(outputs[edit.ours], batch) for edit in fit.outputs)


def _info(spec: TensorSpec, batch: int | str) -> onnx.ValueInfoProto:
    inner = [f"{spec.name}_{axis}" if size == -1 else size for axis, size in enumerate(spec.shape)]
    return helper.make_tensor_value_info(spec.name, ELEMENT_TYPES[spec.datatype], [batch, *inner[1:]])


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove what no remaining output needs (a dropped ZipMap, say)."""
    needed = {info.name for info in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):  # in topological order, so every reader was seen before its writer
        if needed.intersection(node.output):
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
            needed |= _references(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def _references(node: onnx.NodeProto) -> set[str]:
    """Names a node reads, those its subgraphs take from outside included."""
    found = set(node.input)
    for subgraph in subgraphs(node):
        for inner in nodes(subgraph):
            found.update(inner.input)
        found.update(info.name for info in subgraph.output)
    return found


def _value_names(graph: onnx.GraphProto) -> set[str]:
    found = {info.name for info in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    found |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        found.update(node.input)
        found.update(node.output)
        for subgraph in subgraphs(node):
            found |= _value_names(subgraph)
    return found - {""}


def _fresh(wish: str, taken: set[str]) -> str:
    name, number = wish, 1
    while name in taken:
        number += 1
        name = f"{wish}_{number}"
    taken.add(name)
    return name


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """One value's new name, wherever it is written or read, in subgraphs too (ONNX forbids shadowing)."""
    for infos in (graph.input, graph.output, graph.value_info, graph.initializer):
        for info in infos:
            if info.name == old:
                info.name = new
    for tensor in graph.sparse_initializer:
        if tensor.values.name == old:
            tensor.values.name = new
    for node in graph.node:
        for fields in (node.input, node.output):
            for place, name in enumerate(fields):
                if name == old:
                    fields[place] = new
        for subgraph in subgraphs(node):
            _rename(subgraph, old, new)
