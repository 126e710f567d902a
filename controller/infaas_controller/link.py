"""The link to one worker: a framed connection, dialled again whenever it is lost.

It carries batches down and outcomes and the worker's own state up. What comes up goes to a sink (the dispatcher) and to
the view; of queries nothing is known here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf.message import DecodeError

from infaas import __version__
from infaas.clock import Clock
from infaas.domain.cluster import ClusterView, WorkerRecord
from infaas.domain.ids import VariantName, WorkerId
from infaas.errors import InfaasError, UnavailableError
from infaas.exposure import host_of
from infaas.observe.log import get_logger
from infaas.observe.shared_memory import SharedMemoryTally
from infaas.rpc.codec import decode
from infaas.rpc.hop.address import dial
from infaas.rpc.hop.endpoint import Connection, Endpoint, refused_version
from infaas.rpc.hop.frames import OLDEST_VERSION, VERSION, FrameError
from infaas.rpc.hop.given import Given, GivenAnswer
from infaas.rpc.hop.inner import InnerEnd, Meet
from infaas.rpc.hop.sharing import Sharing
from infaas.rpc.tls import Tls
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.tokens import Tokens
from infaas_controller.answers import batch_result, given_result
from infaas_controller.commands import BatchResult
from infaas_controller.liveness import redial_pause_s
from infaas_controller.scalings import Scalings
from infaas_controller.wire import Outgoing

BEAT_S = 2.0
"""A worker takes a controller that is silent for several of these for lost."""
_GRPC_SETTINGS = b"\x04"
"""The fourth byte of the first frame that a gRPC server sends says what kind it is."""
_UNLET = (
    " before it said anything: where it asks for a certificate, it may not accept tls.cert_file, and its log says why"
)
_log = get_logger(__name__)


class ViewSource(Protocol):
    """What is needed of the view's keeper."""

    @property
    def view(self) -> ClusterView: ...

    @property
    def is_synced(self) -> bool: ...

    def subscribe(self, callback: Callable[[ClusterView, ClusterView], None]) -> Callable[[], None]: ...

    def worker_reported(self, record: WorkerRecord) -> None: ...

    def worker_stream_lost(self, worker_id: WorkerId) -> None: ...


class Sink(Protocol):
    """Who is told what comes up the streams. Calls come on the loop and must not block."""

    def worker_connected(self, record: WorkerRecord) -> None:
        """The first report on a new stream."""

    def worker_lost(self, worker: WorkerId) -> None:
        """The stream ended or fell silent; nothing sent on it will be answered."""

    def batch_started(self, batch: int, others: int) -> None:
        """`others` are the items of other controllers that its instance holds."""

    def batch_done(self, batch: int, result: BatchResult) -> None: ...

    def loads_reported(self, loads: Sequence[pb.InstanceLoad]) -> None: ...

    def exchange_reported(self, worker: WorkerId, given_up: frozenset[VariantName] | None) -> None:
        """Variants that the worker has replaced by others; None: it exchanges none. Told when that changes."""


@dataclass(frozen=True, slots=True)
class LinkTerms:
    """What all links of a controller have in common."""

    view_source: ViewSource
    sink: Sink
    clock: Clock
    controller: str
    tokens: Tokens
    draw: Callable[[], float]
    lost_after_s: float
    inner: Mapping[str, Meet] = field(default_factory=dict)
    """Workers of this process, by their addresses: they are met without a socket."""
    shared_memory_bytes: int = 0
    """Lent to each worker that can read it."""
    shared_memory: SharedMemoryTally = field(default_factory=SharedMemoryTally)
    """Where what goes through it is counted."""
    scalings: Scalings = field(default_factory=Scalings)
    """What autoscalers say is for it."""
    tls: Tls | None = None
    """For workers that listen on TCP."""


class Link:
    """One worker's connection, dialled until `close`. A `Handler` of the connection that is open now."""

    def __init__(self, terms: LinkTerms, worker: WorkerId, address: str) -> None:
        self._terms = terms
        self.worker = worker
        self.address = address
        self.is_connected = False
        self.trouble = ""
        """Why there was no connection the last time that one was tried, or why the last one ended."""
        self._is_closed = False
        self.heard_at: float | None = None
        self.report: pb.WorkerReport | None = None
        self.reported_at = 0.0
        self._endpoint: Connection | None = None
        self._sharing: Sharing | None = None
        self._has_attached = False
        self._given_up: frozenset[VariantName] | None = None
        self._has_met = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"link-{worker}")

    def send(self, message: pb.ControllerMessage | Outgoing) -> bool:
        """False when there is no connection to put it on. Raises FrameError for a message that is too large."""
        endpoint = self._endpoint
        if not self.is_connected or endpoint is None:
            return False
        if not isinstance(message, Outgoing):
            endpoint.send(message.SerializeToString())
        elif isinstance(endpoint, InnerEnd) and endpoint.can_give and (given := message.given()) is not None:
            endpoint.give(given)
        else:
            endpoint.send(*message.written())
        return self.is_connected

    def hold(self) -> None:
        if isinstance(self._endpoint, InnerEnd):
            self._endpoint.hold()

    def settle(self) -> None:
        if isinstance(self._endpoint, InnerEnd):
            self._endpoint.settle()

    @property
    def shared_memory(self) -> str | None:
        """None: large inputs go through it. Else why not."""
        sharing = self._sharing
        if not self.is_connected:
            return "there is no connection"
        if sharing is None:
            return "the worker is in the controller's process, where tensors are handed over as they are"
        return None if sharing.is_lending else sharing.reason or "not settled yet"

    async def close(self) -> None:
        """Nothing that still comes up the connection is told to anyone."""
        self._is_closed = True
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.disconnected()

    async def _run(self) -> None:
        failures, said = 0, ""
        while True:
            was_connected, reason = await self._attach_once()
            failures = 0 if was_connected else failures + 1
            log = _log.warning if was_connected or reason != said else _log.debug
            said = self.trouble = reason
            log("no link to the worker", worker=self.worker, reason=reason, failures=failures)
            await asyncio.sleep(redial_pause_s(failures, self._terms.draw()))

    async def _attach_once(self) -> tuple[bool, str]:
        """Serve one connection until it ends; returns whether it came to be a link, and why it ended."""
        self._has_attached = self._has_met = False
        try:
            endpoint = await self._connect()
            endpoint.greet()
            offer = None if self._sharing is None else self._sharing.offer()
            hello = pb.Hello(
                controller=self._terms.controller, version=__version__, token=self._terms.tokens.sent or "", pool=offer
            )
            endpoint.send(pb.ControllerMessage(hello=hello).SerializeToString())
            reason = await asyncio.shield(endpoint.ended)
            return self._has_attached, f"{reason}{_UNLET}" if self._may_be_unlet() else reason
        except TimeoutError:
            return False, f"{self.address} took longer than {self._terms.lost_after_s:g} s to answer"
        except (OSError, InfaasError) as error:
            return False, f"{self.address} cannot be reached: {error}"
        finally:
            if (opened := self._endpoint) is not None:
                opened.cut("the controller let go")
                self._endpoint = None
                if self._sharing is not None:
                    self._sharing.close()
                await opened.gone()

    def _may_be_unlet(self) -> bool:
        """Whether it ended before the worker said anything, over TCP with certificates."""
        is_over_tcp = host_of(self.address) is not None and not isinstance(self._endpoint, InnerEnd)
        return is_over_tcp and self._terms.tls is not None and not self._has_met

    async def _connect(self) -> Connection:
        """What is connected is this link's at once: what comes on it is heard while it is still being dialled."""
        self._sharing = None
        meet = self._terms.inner.get(self.address)
        if meet is not None:
            inner = self._endpoint = meet(self)
            return inner
        lost_after_s = self._terms.lost_after_s
        endpoint = self._endpoint = Endpoint(self, silence_s=lost_after_s, beat_s=BEAT_S)
        self._sharing = Sharing(
            endpoint, self._terms.shared_memory_bytes, self.worker, lambda: self._terms.shared_memory.of(self.worker)
        )
        async with asyncio.timeout(lost_after_s):
            await dial(self.address, lambda: endpoint, self._terms.tls)
        return endpoint

    # -- a connection's handler

    def met(self, version: int) -> None:
        """A worker answers with a version that is spoken here, if it knows one; else it says its own and refuses."""
        self._has_met = True
        if not OLDEST_VERSION <= version <= VERSION:
            self._refuse(f"the worker cannot be used: {refused_version(version)}")

    def stranger(self, first: bytes) -> None:
        if first[3:4] == _GRPC_SETTINGS:
            self._refuse("the worker cannot be used: it speaks gRPC alone, as versions before this protocol did")

    def received(self, head: bytes, payload: memoryview) -> None:
        if self._is_closed or self._endpoint is None:
            return
        try:
            self._take(pb.WorkerMessage.FromString(head), payload)
        except DecodeError as error:
            raise FrameError(f"a message cannot be read: {error}") from error
        except FrameError:
            raise
        except InfaasError as error:
            self._endpoint.cut(f"the worker's report cannot be read: {error}")
        except Exception as error:  # a fault of ours must not leave the worker without a link for ever
            self._say_fault(error)
            raise

    def given(self, what: Given) -> None:
        if self._is_closed or self._endpoint is None:
            return
        if not isinstance(what, GivenAnswer):
            raise FrameError("a worker gives answers and nothing else")
        self.heard_at = self._terms.clock.now()
        try:
            self._terms.sink.batch_done(what.number, given_result(what))
        except Exception as error:  # as of what is received
            self._say_fault(error)
            raise

    def _say_fault(self, error: Exception) -> None:
        _log.error("what a worker said was not taken in", worker=self.worker, exc_info=error)

    def congested(self, is_congested: bool) -> None:
        """Batches are bounded by the worker's slots, so they go on being written; the connection has a last bound."""

    def lost(self, reason: str) -> None:
        self.disconnected()

    def _take(self, message: pb.WorkerMessage, payload: memoryview) -> None:
        self.heard_at = self._terms.clock.now()
        body = message.WhichOneof("body")
        if body == "done":
            self._terms.sink.batch_done(message.done.id, batch_result(message.done, payload))
        elif body == "started":
            self._terms.sink.batch_started(message.started.id, message.started.others)
        elif body == "report":
            self._take_report(message.report)
        elif body == "shared_memory":
            self._share(message.shared_memory)
        elif body == "refusal":
            self._refuse(f"the worker refused ({message.refusal.error_code}): {message.refusal.reason}")

    def _share(self, said: pb.SharedMemory) -> None:
        if self._sharing is None or self._endpoint is None:
            return
        self._sharing.answered(said)
        if said.HasField("pool"):
            answer = self._sharing.answer(said.pool)
            self._endpoint.send(pb.ControllerMessage(shared_memory=answer).SerializeToString())

    def _refuse(self, reason: str) -> None:
        if self._endpoint is not None:
            self._endpoint.cut(reason)

    def _take_report(self, report: pb.WorkerReport) -> None:
        self._terms.scalings.heard(self.worker, report.autoscaling)
        self._say_given_up()  # before anything is placed there
        is_same = self.report is not None and self.report.worker == report.worker and self.is_connected
        self.report, self.reported_at = report, self._terms.clock.now()
        if not is_same:
            record = decode(report.worker, WorkerRecord)
            if record.id != self.worker:
                raise UnavailableError(f"{self.address} is worker {record.id!r}, not {self.worker!r}")
            self._terms.view_source.worker_reported(record)
            if not self.is_connected:
                self.is_connected = self._has_attached = True
                self._terms.sink.worker_connected(record)
        self._terms.sink.loads_reported(report.loads)

    def _say_given_up(self) -> None:
        given_up = self._terms.scalings.given_up(self.worker)
        if given_up != self._given_up:
            self._given_up = given_up
            self._terms.sink.exchange_reported(self.worker, given_up)

    def disconnected(self) -> None:
        """Nothing more can be sent. Told to the view and to the sink, once."""
        if self.is_connected:
            self.is_connected = False
            self._terms.scalings.left(self.worker)
            self._say_given_up()
            for tell in (self._terms.view_source.worker_stream_lost, self._terms.sink.worker_lost):
                try:
                    tell(self.worker)
                except Exception as error:  # whoever calls goes on to dial again, or to close
                    _log.error("the loss of a worker was not taken in", worker=self.worker, exc_info=error)
