"""Running batches on an attached model: the task's tensors in, the task's tensors out.

Worker and profiler run them by this one way, so that what was measured is what serves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infaas.domain.tensor import Datatype
from infaas.errors import InvalidError, ModelError
from infaas.oip.v2 import grpc_service_pb2 as oip
from infaas.triton.reference import Reference, TensorMap
from infaas.triton.server import TritonServer
from infaas.triton.tensors import Raw, cast, cut, join

OnStart = Callable[[Any], None]


class Caller:
    """One attached model on one server. May be shared by threads."""

    def __init__(self, name: str, reference: Reference, server: TritonServer) -> None:
        """`name` is the variant's, for what errors say."""
        self.name = name
        self.reference = reference
        self._server = server
        self.inputs: Mapping[str, TensorMap] = {one.ours: one for one in reference.inputs}
        self.outputs: Mapping[str, TensorMap] = {one.ours: one for one in reference.outputs}

    def datatypes(self, outputs: Sequence[str]) -> tuple[Datatype, ...]:
        return tuple(self.outputs[name].task_type for name in outputs)

    def run(
        self, feed: Mapping[str, Raw], items: int, outputs: Sequence[str], timeout_s: float, on_start: OnStart | None
    ) -> list[Raw]:
        """All rows of `feed` at once, as far as the model takes so many; else in portions, one after another.

        Raises what `TritonServer.infer` raises, and ModelError for answers that are not one row per item.
        """
        if items < 1:
            raise InvalidError(f"{self.name}: a batch needs at least one item")
        portion = self._portion()
        if portion is None or portion == items:
            if portion is None and items > self.reference.max_batch_size:
                most = self.reference.max_batch_size
                raise InvalidError(f"{self.name} takes at most {most} items, the batch has {items}")
            return self._send(feed, items, outputs, timeout_s, on_start)
        return self._in_portions(feed, items, portion, outputs, timeout_s, on_start)

    def _portion(self) -> int | None:
        """The only number of items that a request may hold."""
        return self.reference.fixed_batch if self.reference.is_batched else 1

    def _in_portions(
        self,
        feed: Mapping[str, Raw],
        items: int,
        size: int,
        outputs: Sequence[str],
        timeout_s: float,
        on_start: OnStart | None,
    ) -> list[Raw]:
        """The last one is filled up with its last item, whose extra answers are dropped."""
        counts = [min(size, items - at) for at in range(0, items, size)]
        cuts = {name: cut(name, self.inputs[name].task_type, raw, counts) for name, raw in feed.items()}
        answers: list[list[Raw]] = [[] for _ in outputs]
        ends_at = time.monotonic() + timeout_s
        for index, count in enumerate(counts):
            part = {name: self._filled(name, portions[index], count, size) for name, portions in cuts.items()}
            left_s = max(0.001, ends_at - time.monotonic())
            got = self._send(part, size, outputs, left_s, on_start)
            for at, (name, raw) in enumerate(zip(outputs, got, strict=True)):
                whole = count == size
                answers[at].append(raw if whole else cut(name, self.outputs[name].task_type, raw, [count])[0])
        return [join(name, parts) for name, parts in zip(outputs, answers, strict=True)]

    def _filled(self, name: str, raw: Raw, count: int, size: int) -> Raw:
        if count == size:
            return raw
        last = cut(name, self.inputs[name].task_type, raw, [count - 1, 1])[1]
        return join(name, [raw, *[last] * (size - count)])

    def _send(
        self, feed: Mapping[str, Raw], items: int, outputs: Sequence[str], timeout_s: float, on_start: OnStart | None
    ) -> list[Raw]:
        request = self._request(feed, outputs, timeout_s)
        try:
            answer = self._server.infer(request, timeout_s, on_start)
        except ModelError as error:
            raise ModelError(f"{self.name} failed: {error.text}") from error
        if len(answer.raw_output_contents) != len(answer.outputs):
            raise ModelError(f"{self.name}: the server answers without raw tensors")
        found = {one.name: (one, data) for one, data in zip(answer.outputs, answer.raw_output_contents, strict=True)}
        return [self._output(self.outputs[name], found, items) for name in outputs]

    def _output(self, one: TensorMap, found: Mapping[str, tuple[Any, bytes]], items: int) -> Raw:
        if one.theirs not in found:
            raise ModelError(f"{self.name} gave no output {one.theirs!r}")
        tensor, data = found[one.theirs]
        shape = tuple(tensor.shape) if self.reference.is_batched else (1, *tensor.shape)
        if not shape or shape[0] != items:
            raise ModelError(
                f"output {one.theirs!r} of {self.name} has shape {list(shape)} for a batch of {items}: "
                "its first dimension is not the batch dimension"
            )
        if tensor.datatype != one.model_type.value:
            raise ModelError(f"output {one.theirs!r} of {self.name} is {tensor.datatype}, not {one.model_type.value}")
        return cast(Raw(shape, data), one.model_type, one.task_type, is_argmax=one.is_argmax)

    def _request(self, feed: Mapping[str, Raw], outputs: Sequence[str], timeout_s: float) -> oip.ModelInferRequest:
        """Triton's own `timeout` goes along: where a model's queue policy allows it, what waits too long is dropped."""
        reference = self.reference
        request = oip.ModelInferRequest(model_name=reference.model, model_version=reference.version)
        request.parameters["timeout"].int64_param = max(1, int(timeout_s * 1e6))
        for name, raw in feed.items():
            one = self.inputs[name]
            sent = cast(raw, one.task_type, one.model_type)
            shape = sent.shape if reference.is_batched else sent.shape[1:]
            request.inputs.add(name=one.theirs, datatype=one.model_type.value, shape=shape)
            request.raw_input_contents.append(sent.data if isinstance(sent.data, bytes) else bytes(sent.data))
        for theirs in dict.fromkeys(self.outputs[name].theirs for name in outputs):
            request.outputs.add(name=theirs)
        return request
