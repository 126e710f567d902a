"""What the engine asks its shell to do, and what the shell tells it of a batch: plain values, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from infaas.domain.ids import InstanceId, WorkerId
from infaas.domain.variant import Variant
from infaas.errors import InfaasError
from infaas_controller.lanes import Lane
from infaas_controller.queues import Ticket


class SendBatch(msgspec.Struct, frozen=True):
    lane: Lane
    number: int
    tickets: tuple[Ticket, ...]


class CancelStaged(msgspec.Struct, frozen=True):
    worker: WorkerId
    batch: int
    tickets: tuple[int, ...]


class LoadOn(msgspec.Struct, frozen=True):
    worker: WorkerId
    instance: InstanceId
    variant: Variant


class Finish(msgspec.Struct, frozen=True):
    """A ticket's end without an answer."""

    ticket: Ticket
    error: InfaasError


class Answered(msgspec.Struct, frozen=True):
    """The end of tickets that ran in one batch: each has outputs in its result."""

    tickets: list[Ticket]
    result: BatchResult


class Digest(msgspec.Struct, frozen=True):
    """Of the inputs of a ticket, which may have ended by now. They are large: not on the loop."""

    ticket: Ticket


Command = SendBatch | CancelStaged | LoadOn | Finish | Answered | Digest


class BatchResult(msgspec.Struct, frozen=True):
    """How a batch ended at its worker. `outputs` belongs to the shell; the engine hands it on."""

    error: str = ""
    """Empty: it ran; else a code's slug."""
    reason: str = ""
    was_running: bool = False
    staged_s: float = 0.0
    run_s: float = 0.0
    outputs: Mapping[int, object] | None = None
    """By ticket number. A query without outputs that did not fail was not run."""
    failed: Mapping[int, tuple[str, str]] | None = None
    """What befell single queries of a batch that ran: a code's slug and words, by ticket number."""
