"""Controllers on the worker: one framed connection each, and what they may ask on it.

Batches are answered on the connection they came on; one that ends takes its staged batches with it. Reports are
replaceable, so a slow reader gets the newest one instead of a backlog; outcomes of batches are never dropped, and
while they wait to be read nothing more is taken from their controller.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from infaas.domain.ids import InstanceId
from infaas.domain.query import Code
from infaas.domain.variant import Variant
from infaas.domain.wish import Wishes
from infaas.errors import InvalidError, UnauthenticatedError, UnavailableError
from infaas.observe.log import get_logger
from infaas.rpc.codec import decode
from infaas.rpc.hop.endpoint import Connection, Endpoint
from infaas.rpc.hop.frames import LIMIT_BYTES, Buffer, FrameError
from infaas.rpc.hop.given import Given, GivenBatch
from infaas.rpc.hop.inner import InnerEnd
from infaas.rpc.hop.sharing import Sharing
from infaas.rpc.v1 import worker_pb2
from infaas.tokens import Tokens
from infaas_worker.api import handover, messages
from infaas_worker.api.auth import NO_WORD, WRONG_WORD
from infaas_worker.api.publisher import Publisher
from infaas_worker.api.tracing import RunSpans
from infaas_worker.batches import Ran
from infaas_worker.decide.events import Queries
from infaas_worker.decide.serving import held_for_others
from infaas_worker.executors.base import BatchIn
from infaas_worker.heeding import Heeding
from infaas_worker.instances import Instances

_log = get_logger(__name__)
MAX_OUTPUT_BYTES = LIMIT_BYTES - 2**20
"""Of one batch; what is left of a frame is for names and shapes. More could not be sent."""


class Controllers:
    """Admits controllers. Lives on the event loop; `begin_stop` refuses new ones before the listener closes."""

    def __init__(
        self,
        instances: Instances,
        publisher: Publisher,
        tokens: Tokens,
        spans: RunSpans | None = None,
        *,
        shared_memory_bytes: int = 0,
        heeding: Heeding | None = None,
    ) -> None:
        self._heeding = heeding
        self._instances = instances
        self._publisher = publisher
        self._tokens = tokens
        self._spans = spans
        self._shared_memory_bytes = shared_memory_bytes
        self._numbers = itertools.count(1)
        self._is_stopping = False

    def begin_stop(self) -> None:
        self._is_stopping = True

    def admit(self, hello: worker_pb2.Hello, endpoint: Connection) -> ControllerStream:
        """Raises UnauthenticatedError, or UnavailableError while the worker stops."""
        if not self._tokens.accepts(hello.token):
            raise UnauthenticatedError(WRONG_WORD if hello.token else NO_WORD)
        if self._is_stopping:
            raise UnavailableError("the worker is stopping")
        name = f"{hello.controller}#{next(self._numbers)}"
        sharing = Sharing(endpoint, self._shared_memory_bytes, name) if isinstance(endpoint, Endpoint) else None
        stream = ControllerStream(
            name, endpoint, self._instances, self._publisher, self._spans, sharing, self._heeding
        )  # fmt: skip
        _log.info("controller attached", controller=stream.id, version=hello.version)
        self._publisher.add(stream)
        if hello.HasField("pool"):
            stream.share(hello.pool)
        return stream


class ControllerStream:
    """One controller's connection: a `Handler` of what it sends, an `Owner` of batches, a subscriber to reports."""

    def __init__(
        self,
        stream_id: str,
        endpoint: Connection,
        instances: Instances,
        publisher: Publisher,
        spans: RunSpans | None = None,
        sharing: Sharing | None = None,
        heeding: Heeding | None = None,
    ) -> None:
        """`sharing`: None where nothing lies between the two ends, within a process. `heeding`: None where no variant
        is exchanged for another."""
        self._id = stream_id
        self._endpoint = endpoint
        self._inner = endpoint if isinstance(endpoint, InnerEnd) else None
        self._instances = instances
        self._publisher = publisher
        self._spans = spans
        self._sharing = sharing
        self._heeding = heeding
        self._queries: dict[int, Queries] = {}
        self._instance_of: dict[int, InstanceId] = {}
        self._report: worker_pb2.WorkerMessage | None = None
        self._is_over = False

    @property
    def id(self) -> str:
        return self._id

    # -- a connection's handler

    def met(self, version: int) -> None:
        """Looked at before the controller was admitted."""

    def stranger(self, first: bytes) -> None:
        """Looked at before the controller was admitted."""

    def received(self, head: bytes, payload: memoryview) -> None:
        try:
            message = worker_pb2.ControllerMessage.FromString(head)
        except DecodeError as error:
            raise FrameError(f"a message cannot be read: {error}") from error
        try:
            self._take(message, payload)
        except FrameError:
            raise
        except Exception as error:  # the connection ends of it; why is said here, where it is known
            _log.error("what a controller said was not taken in", controller=self._id, exc_info=error)
            raise

    def given(self, what: Given) -> None:
        if not isinstance(what, GivenBatch):
            raise FrameError("a controller gives batches and nothing else")
        try:
            self._take_given(what)
        except Exception as error:  # as above
            _log.error("what a controller gave was not taken in", controller=self._id, exc_info=error)
            raise

    def congested(self, is_congested: bool) -> None:
        self._endpoint.pause(is_congested)
        if not is_congested and self._report is not None:
            message, self._report = self._report, None
            self._send(message)

    def lost(self, reason: str) -> None:
        self._is_over = True
        self._publisher.remove(self)
        self._instances.leave(self._id)
        if self._spans is not None:
            self._spans.left(self._id)
        if self._sharing is not None:
            self._sharing.close()
        _log.info("controller left", controller=self._id, reason=reason)

    def share(self, offered: worker_pb2.Pool) -> None:
        """The controller offers memory."""
        if self._sharing is None:
            return
        answer = self._sharing.answer(offered)
        if answer.is_read and (own := self._sharing.offer()) is not None:
            answer.pool.CopyFrom(own)
        self._send(worker_pb2.WorkerMessage(shared_memory=answer))

    # -- an owner of batches

    def started(self, batch: int) -> None:
        self._send(messages.started(batch, self._others(batch)))

    def ran(self, batch: int, ran: Ran) -> None:
        queries, others = self._queries.pop(batch), self._others(batch)
        self._instance_of.pop(batch, None)
        size = ran.output_bytes
        if size > MAX_OUTPUT_BYTES:
            text = f"the outputs of one batch are {size} bytes, at most {MAX_OUTPUT_BYTES} can be sent: ask for less"
            self._send(messages.refused(batch, Code.TOO_LARGE, text, was_running=True, held_s=0.0, others=others))
        else:
            self._answer(batch, queries, ran, others)
        if self._spans is not None:
            self._spans.ran(self._id, batch, ran, self._instances.variants)

    def _answer(self, batch: int, queries: Queries, ran: Ran, others: int) -> None:
        inner = self._inner
        given = None if inner is None or not inner.can_give else handover.answer(batch, queries, ran, others)
        if inner is not None and given is not None:
            inner.give(given)
        else:
            self._send(*messages.ran(batch, queries, ran, others))

    def refused(self, batch: int, code: Code, text: str, was_running: bool, held_s: float) -> None:
        others = self._others(batch)
        self._queries.pop(batch, None)
        self._instance_of.pop(batch, None)
        if self._spans is not None:
            self._spans.refused(self._id, batch)
        self._send(messages.refused(batch, code, text, was_running, held_s, others))

    # -- a subscriber to reports

    def report(self, message: worker_pb2.WorkerMessage) -> None:
        """Replaces a report that was not sent yet."""
        if self._endpoint.is_congested:
            self._report = message
        else:
            self._send(message)

    async def flushed(self) -> None:
        """Until everything is in the system's hands, or the connection is over."""
        while not self.has_flushed:
            await self._endpoint.flushed()

    @property
    def has_flushed(self) -> bool:
        return self._is_over or (self._report is None and not self._endpoint.unsent_bytes)

    # -- inside

    def _take(self, message: worker_pb2.ControllerMessage, payload: memoryview) -> None:
        match message.WhichOneof("body"):
            case "batch":
                self._take_batch(message.batch, payload)
            case "cancel":
                self._instances.cancel(self._id, message.cancel.batch, frozenset(message.cancel.queries))
            case "load":
                self._take_load(message.load)
            case "shared_memory":
                if self._sharing is not None:
                    self._sharing.answered(message.shared_memory)
            case "unload":
                reason = message.unload.reason or f"asked for by {self._id}"
                self._instances.unload(InstanceId(message.unload.instance), reason)
            case "wishes":
                self._heed(message.wishes)
            case other:
                _log.warning("message without use", controller=self._id, body=other)

    def _heed(self, said: worker_pb2.Wishes) -> None:
        if self._heeding is None:
            return
        try:
            self._heeding.heard(decode(said.wishes, Wishes), self._instances.now())
        except InvalidError as error:
            _log.warning("wishes cannot be read", controller=self._id, reason=error.text)

    def _take_given(self, batch: GivenBatch) -> None:
        if self._is_here(batch.number):
            return
        queries, value = handover.taken(batch)
        self._submit(batch.number, InstanceId(batch.instance), value, queries, may_share=True)

    def _is_here(self, batch: int) -> bool:
        """Then it is refused: its number is another's."""
        if batch not in self._queries:
            return False
        self._send(messages.refused(batch, Code.INVALID, f"batch {batch} is already here", False, 0.0))
        return True

    def _take_batch(self, batch: worker_pb2.Batch, payload: memoryview) -> None:
        if self._is_here(batch.id):
            return
        try:
            queries = messages.to_queries(batch, self._instances.now())
            value = messages.to_batch(batch, queries.items, payload)
        except InvalidError as error:
            self._send(messages.refused(batch.id, error.code, error.text, False, 0.0))
            return
        if self._spans is not None:
            self._spans.arrived(self._id, batch)
        self._submit(batch.id, InstanceId(batch.instance), value, queries, may_share=not batch.alone)

    def _submit(self, batch: int, instance: InstanceId, value: BatchIn, queries: Queries, *, may_share: bool) -> None:
        self._queries[batch] = queries
        self._instance_of[batch] = instance
        may_share = may_share and self._publisher.has_several
        self._instances.submit(self, batch, instance, value, queries, may_share=may_share)

    def _others(self, batch: int) -> int:
        """What the batch's instance holds of other controllers; asked for only where there are any."""
        instance = self._instance_of.get(batch)
        if instance is None or not self._publisher.has_several:
            return 0
        return held_for_others(self._instances.serving, self._id, instance)

    def _take_load(self, load: worker_pb2.LoadInstance) -> None:
        try:
            variant = decode(load.variant, Variant)
        except InvalidError as error:
            _log.error("load without a variant", controller=self._id, instance=load.instance, reason=error.text)
            self._instances.reject(InstanceId(load.instance), f"the variant cannot be read: {error.text}")
            return
        self._instances.load(InstanceId(load.instance), variant)

    def _send(self, message: worker_pb2.WorkerMessage, segments: Sequence[Buffer] = ()) -> None:
        self._endpoint.send(message.SerializeToString(), segments)
