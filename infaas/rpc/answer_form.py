"""Answers of one form: what is the same in the JSON of many answers, written once, with holes for what is not.

Answers to like queries differ in their tensors' values and in the decision's id. Encoding the rest anew for each would
cost more than choosing for it did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from infaas.domain.tensor import Datatype, Tensor
from infaas.rpc.requirements import Scalar
from infaas.rpc.tensors_json import answer_parts, encode_data

_HOLE = b"\0"
"""JSON has no such byte: within strings it is escaped."""
DECISION_ID = "decision_id"
Buffer = bytes | memoryview


class NoFormError(ValueError):
    """Such answers are written one by one."""


class AnswerForm:
    """Made of one answer; good for every answer that `fits`."""

    __slots__ = ("_are_binary", "_likes", "_literals")

    def __init__(
        self,
        tensors: Sequence[tuple[Tensor, bool]],
        *,
        model_name: str,
        model_version: str,
        parameters: Mapping[str, Scalar],
    ) -> None:
        """`parameters` hold the decision's id. Raises NoFormError."""
        if any(tensor.datatype is Datatype.BYTES for tensor, _ in tensors):
            raise NoFormError("a shape does not say how large BYTES are")
        if msgspec.json.encode(parameters[DECISION_ID]) != f'"{parameters[DECISION_ID]}"'.encode():
            raise NoFormError("the decisions' ids need escaping")
        self._likes = tuple([_like(tensor) for tensor, _ in tensors])
        self._are_binary = tuple([is_binary for _, is_binary in tensors])
        parts, _ = answer_parts(
            tensors,
            model_name=model_name,
            model_version=model_version,
            parameters={**parameters, DECISION_ID: "\0"},
            rendered={tensor.name: _HOLE for tensor, _ in tensors},
        )
        text = bytes(parts[0]).replace(b'"\\u0000"', _HOLE)
        self._literals = text.split(_HOLE)
        if len(self._literals) != 2 + self._are_binary.count(False):
            raise NoFormError("a name in this answer reads like a hole")

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the outputs of such an answer, in its order."""
        if len(tensors) != len(self._likes):
            return False
        for tensor, (name, datatype, shape) in zip(tensors, self._likes, strict=True):
            if tensor.shape != shape or tensor.name != name or tensor.datatype is not datatype:
                return False
        return True

    def parts(self, tensors: Sequence[Tensor], decision_id: str) -> tuple[list[Buffer], int | None]:
        """As `answer_parts`. `decision_id` is of the same controller. Raises InvalidError as that does."""
        literals, place = self._literals, 0
        pieces: list[Buffer] = [literals[0]]
        buffers: list[Buffer] = []
        for tensor, is_binary in zip(tensors, self._are_binary, strict=True):
            if is_binary:
                buffers.append(tensor.data)
            else:
                place += 1
                pieces += (encode_data(tensor), literals[place])
        pieces += (f'"{decision_id}"'.encode("ascii"), literals[-1])
        if not buffers:
            return pieces, None
        head = b"".join(pieces)
        return [head, *buffers], len(head)


def _like(tensor: Tensor) -> tuple[str, Datatype, tuple[int, ...]]:
    return tensor.name, tensor.datatype, tensor.shape
