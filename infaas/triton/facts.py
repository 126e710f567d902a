"""What a Triton server says about one of its models, and why some cannot be attached. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from infaas.domain.tensor import Datatype
from infaas.domain.variant import Hardware
from infaas.errors import InvalidError
from infaas.oip.v2 import grpc_service_pb2 as oip
from infaas.oip.v2 import model_config_pb2 as config_pb2
from infaas.triton.reference import Reference

MAX_IN_FLIGHT = 16
"""However many instances a server has: each request in flight takes a thread and buffers of the worker's."""
_DATATYPES = {datatype.value: datatype for datatype in Datatype}


@dataclass(frozen=True, slots=True)
class ServerTensor:
    """As the metadata says: with the batch dimension, if there is one; `datatype` None: none that we can serve."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def datatype(self) -> Datatype | None:
        return _DATATYPES.get(self.kind)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    name: str
    version: str
    """The newest that is loaded."""
    platform: str
    inputs: tuple[ServerTensor, ...]
    outputs: tuple[ServerTensor, ...]
    max_batch_size: int
    """0: the server knows of no batch dimension."""
    instances: int
    hardware: Hardware
    problems: tuple[str, ...] = ()
    """Why it cannot be attached."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of the server's repository index."""

    name: str
    version: str
    state: str
    reason: str


def facts_of(metadata: oip.ModelMetadataResponse, config: config_pb2.ModelConfig, version: str = "") -> ModelFacts:
    """Raises InvalidError when the server has another version than the one asked for."""
    versions = sorted(metadata.versions, key=lambda text: (text.isdigit(), int(text) if text.isdigit() else 0, text))
    if version and version not in versions:
        raise InvalidError(f"{metadata.name!r} has no version {version!r}; loaded are {', '.join(versions) or 'none'}")
    instances = [group for group in config.instance_group if not group.passive]
    kind = config_pb2.ModelInstanceGroup
    has_gpu = any(group.kind == kind.KIND_GPU for group in instances)
    return ModelFacts(
        name=metadata.name,
        version=version or (versions[-1] if versions else ""),
        platform=config.backend or metadata.platform,
        inputs=tuple(ServerTensor(t.name, t.datatype, tuple(t.shape)) for t in metadata.inputs),
        outputs=tuple(ServerTensor(t.name, t.datatype, tuple(t.shape)) for t in metadata.outputs),
        max_batch_size=max(0, config.max_batch_size),
        instances=min(MAX_IN_FLIGHT, max(1, sum(_count(group) for group in instances))),
        hardware=Hardware.GPU if has_gpu else Hardware.CPU,
        problems=tuple(_problems(metadata, config)),
    )


def changes(reference: Reference, facts: ModelFacts) -> list[str]:
    """In what the server's model is no longer the one that was attached; it must be attached, and measured, again."""
    found = {tensor.name: tensor.datatype for tensor in (*facts.inputs, *facts.outputs)}
    changed = [
        f"{what} {one.theirs!r} was {one.model_type.value} and is {_word(found.get(one.theirs))}"
        for what, maps in (("input", reference.inputs), ("output", reference.outputs))
        for one in maps
        if found.get(one.theirs) is not one.model_type
    ]
    known = {one.theirs for one in reference.inputs}
    changed += [f"there is a new input {t.name!r}" for t in facts.inputs if t.name not in known]
    if facts.max_batch_size and facts.max_batch_size < reference.max_batch_size:
        changed.append(f"its batch limit was {reference.max_batch_size} and is {facts.max_batch_size}")
    return changed + list(facts.problems)


def _problems(metadata: oip.ModelMetadataResponse, config: config_pb2.ModelConfig) -> list[str]:
    problems = []
    if config.HasField("sequence_batching"):
        problems.append(
            "it keeps state between the requests of a sequence (sequence_batching); queries here stand alone, "
            "and any instance may get the next one"
        )
    if config.model_transaction_policy.decoupled:
        problems.append("it is decoupled: it may give several answers or none to one request; a query here has one")
    for what, tensors in (("input", config.input), ("output", config.output)):
        problems += [
            f"{what} {t.name!r} is a shape tensor, which queries cannot carry" for t in tensors if t.is_shape_tensor
        ]
    problems += [
        f"input {tensor.name!r} is ragged: items of different shapes do not go into one batch here"
        for tensor in config.input
        if tensor.allow_ragged_batch
    ]
    for what, described in (("input", metadata.inputs), ("output", metadata.outputs)):
        problems += [
            f"{what} {t.name!r} is {t.datatype}, which is none of {', '.join(_DATATYPES)}"
            for t in described
            if t.datatype not in _DATATYPES
        ]
    return problems


def _count(group: config_pb2.ModelInstanceGroup) -> int:
    """Per device, where it names devices."""
    return max(1, int(group.count)) * max(1, len(group.gpus))


def _word(datatype: Datatype | None) -> str:
    return "absent" if datatype is None else datatype.value
