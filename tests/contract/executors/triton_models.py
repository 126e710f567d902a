"""Graphs of the contract suite as models of a real Triton server, with the references that attach them."""

from __future__ import annotations

import secrets
from pathlib import Path

from infaas.domain.variant import Hardware
from infaas.testing.graphs import Graph
from infaas.testing.triton import TritonProcess, add_model
from infaas.triton.reference import FORMAT, Reference, TensorMap, write_reference

MAX_BATCH = 32


def attached(server: TritonProcess, graph: Graph, folder: Path, *, instances: int = 1) -> Path:
    """Each call is a model of its own, which the executor has the server load."""
    name = f"m{secrets.token_hex(5)}"
    fixed = graph.inputs[0].shape[0] if graph.inputs[0].shape[0] != -1 else None
    is_plain = fixed is None and all(len(spec.shape) > 1 for spec in (*graph.inputs, *graph.outputs))
    limit = MAX_BATCH if is_plain else 0
    add_model(
        server.repository, name, graph.data, graph.inputs, graph.outputs, max_batch_size=limit, instances=instances
    )
    reference = Reference(
        format=FORMAT,
        url=server.url,
        model=name,
        version="1",
        inputs=tuple(TensorMap(s.name, s.name, s.datatype, s.datatype) for s in graph.inputs),
        outputs=tuple(TensorMap(s.name, s.name, s.datatype, s.datatype) for s in graph.outputs),
        is_batched=True,
        fixed_batch=fixed,
        max_batch_size=fixed or MAX_BATCH,
        instances=instances,
        hardware=Hardware.CPU,
        platform="python",
    )
    path = folder / f"{name}.json"
    write_reference(reference, path)
    return path
