"""From a decoded request to the domain's `Query`, and from an `Answer` back to the outputs that were asked for.

Both protocols pass through here, so that they refuse the same things in the same words.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from infaas.domain.cluster import ClusterView
from infaas.domain.ids import ModelName, TaskName, VariantName
from infaas.domain.query import HARD_LIMIT_S, Decision, Query, Requirements, TraceContext
from infaas.domain.task import Task, TaskDefaults
from infaas.domain.tensor import Datatype, Signature, Tensor, signature
from infaas.errors import InfaasError, InvalidError, NotFoundError
from infaas.rpc.codec import encode
from infaas.rpc.requirements import Scalar, read_requirements
from infaas.rpc.tensors import InferRequest, RequestedOutput, check_inputs, classify
from infaas.rpc.tensors_json import is_binary, json_refusal
from infaas.store.view import require_filled
from infaas_controller.api.headers import Caller
from infaas_controller.ports import Answer, Outcome

_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_MAX_NAMES_COMPARED = 300
SIGNATURES_KEPT = 1_024
_signatures: dict[Signature, Signature] = {}


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a request came and how long its caller waits for it. `at` is on the controller's monotonic clock."""

    at: float
    time_remaining_s: float | None = None
    """A gRPC deadline; None when there is none."""


class Outline(NamedTuple):
    """What was found of a request when it was checked."""

    items: int
    signature: Signature
    outputs: tuple[str, ...]
    """Requested, in order; empty means all."""


def find_task(view: ClusterView, handle: str) -> Task:
    """The task whose inputs and outputs a handle has, whatever its level. Raises as `unknown_name` says."""
    task = view.tasks.get(TaskName(handle))
    if task is not None:
        return task
    model = view.models.get(ModelName(handle))
    variant = view.variants.get(VariantName(handle))
    owner = model.task if model is not None else variant.task if variant is not None else None
    if owner is None or owner not in view.tasks:
        raise unknown_name(view, handle)
    return view.tasks[owner]


def unknown_name(view: ClusterView, handle: str) -> NotFoundError:
    """What to raise, with near names. Raises UnavailableError when the store was not read yet."""
    require_filled(view)
    names: list[str] = [*view.tasks, *view.models]
    if len(names) + len(view.variants) <= _MAX_NAMES_COMPARED:
        names += view.variants
    shown = handle if len(handle) <= 128 else handle[:125] + "..."
    near = difflib.get_close_matches(handle[:128], names[:_MAX_NAMES_COMPARED], n=3, cutoff=0.5)
    if near:
        return NotFoundError(f"unknown model {shown!r}; did you mean {' or '.join(map(repr, near))}?")
    return NotFoundError(f"unknown model {shown!r}; POST /v2/repository/index lists what is registered")


def parse_version(text: str | None) -> int | None:
    """None is the version that serves now. Raises InvalidError for what can be no version."""
    if not text:
        return None
    if not _VERSION.fullmatch(text):
        raise InvalidError(
            f"version {text[:40]!r} must be a whole number from 1; without one the newest ready one serves"
        )
    return int(text)


def reading_deadline(
    headers: Mapping[str, str], parameters: Mapping[str, Scalar] | None, defaults: TaskDefaults, arrival: Arrival
) -> float:
    """Until when a large request may be read, on the controller's clock: its query's deadline. `parameters` None: they
    are not known yet and may state another than the task's, so that only headers count.

    Raises as `build_query` does for requirements that cannot be understood: such a request is not worth reading.
    """
    known, usual = ({}, TaskDefaults()) if parameters is None else (parameters, defaults)
    return _deadline(arrival, read_requirements(headers, known, usual, time_remaining_s=arrival.time_remaining_s))


def build_query(
    handle: str,
    version: int | None,
    task: Task,
    request: InferRequest,
    requirements: Requirements,
    caller: Caller,
    arrival: Arrival,
    trace: TraceContext | None = None,
    basis: Requirements | None = None,
) -> Query:
    """Raises InvalidError or UnsupportedError; whatever it returns is well-formed."""
    outline = checked(request, task)
    return Query(
        id=caller.request_id,
        handle=handle,
        version=version,
        requirements=requirements,
        items=outline.items,
        signature=outline.signature,
        inputs=request.inputs,
        outputs=outline.outputs,
        arrived_at=arrival.at,
        deadline=_deadline(arrival, requirements),
        trace=trace,
        basis=basis,
    )


def checked(request: InferRequest, task: Task) -> Outline:
    """Hold a request against its task. What comes out depends on the inputs' names, datatypes and shapes, and on the
    outputs asked for, but on no value. Raises InvalidError."""
    items = check_inputs(request.inputs, task.inputs)
    _check_outputs(request.outputs, task)
    return Outline(items, _one_object(signature(request.inputs)), tuple([output.name for output in request.outputs]))


def _one_object(found: Signature) -> Signature:
    """Equal ones as one object: queries are decided on together by that."""
    if len(_signatures) >= SIGNATURES_KEPT:
        _signatures.clear()
    return _signatures.setdefault(found, found)


def _deadline(arrival: Arrival, requirements: Requirements) -> float:
    return arrival.at + time_s(requirements)


def time_s(requirements: Requirements) -> float:
    """How long an answer may take."""
    return HARD_LIMIT_S if requirements.latency_s is None else requirements.latency_s


def check_json_outputs(request: InferRequest, task: Task) -> None:
    """Refuse what JSON could not carry before any work is done for it (REST only)."""
    asked = {output.name: output for output in request.outputs}
    for spec in task.outputs:
        if asked and spec.name not in asked:
            continue
        output = asked.get(spec.name)
        if is_binary(output, request) or (output is not None and output.classes):
            continue
        refusal = json_refusal(spec.datatype, spec.name)
        if refusal is not None:
            raise refusal


def _check_outputs(outputs: Sequence[RequestedOutput], task: Task) -> None:
    known = {spec.name: spec for spec in task.outputs}
    for output in outputs:
        spec = known.get(output.name)
        if spec is None:
            raise InvalidError(f"unknown output {output.name!r}; the outputs are {', '.join(map(repr, known))}")
        if output.classes and spec.datatype in (Datatype.BYTES, Datatype.BOOL):
            raise InvalidError(
                f"output {output.name!r} is {spec.datatype.value}; only numbers can be asked for as classification"
            )


def answered_outputs(
    answer: Answer, request: InferRequest, task: Task, classified: Mapping[str, Tensor] | None = None
) -> list[tuple[Tensor, bool]]:
    """The tensors in the order asked for, each with whether REST sends it in binary. `classified` are the classes that
    were sorted out already."""
    if not request.outputs:
        return [(tensor, request.binary_output) for tensor in answer.outputs]
    by_name = {tensor.name: tensor for tensor in answer.outputs}
    found: list[tuple[Tensor, bool]] = []
    for output in request.outputs:
        tensor = by_name.get(output.name)
        if tensor is None:
            raise InfaasError(f"variant {answer.outcome.variant!r} left out output {output.name!r}")
        if output.classes:
            ready = None if classified is None else classified.get(output.name)
            tensor = classify(tensor, output.classes, task.classes) if ready is None else ready
        found.append((tensor, is_binary(output, request)))
    return found


def answer_parameters(outcome: Outcome, decision: Decision | None) -> dict[str, Scalar]:
    """The answer's OIP parameters: the twins of its headers, and the decision when it was asked for."""
    parameters: dict[str, Scalar] = {"decision_id": outcome.decision_id}
    if outcome.variant is not None:
        parameters["variant"] = outcome.variant
    if outcome.worker is not None:
        parameters["worker"] = outcome.worker
    if outcome.slo_met is not None:
        parameters["slo_met"] = outcome.slo_met
    if outcome.fallback is not None:
        parameters["fallback"] = outcome.fallback
    if decision is not None:
        parameters["decision"] = encode(decision).decode()
    return parameters


def cost_usd(view: ClusterView, name: VariantName | None, items: int) -> float:
    """What answering cost, by the profile of the variant that did."""
    variant = None if name is None else view.variants.get(name)
    if variant is None or variant.profile is None:
        return 0.0
    return variant.profile.cost_usd_per_1k * items / 1000
