"""One infer request, whatever protocol it came by: from the decoded request to the answered outputs, counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from infaas.clock import Clock
from infaas.domain.cluster import ClusterView
from infaas.domain.ids import TenantName, VariantName
from infaas.domain.query import AccuracyConfidence, Code, Decision, Priority, Query, Requirements
from infaas.domain.task import Task
from infaas.domain.tensor import Tensor
from infaas.errors import InfaasError
from infaas.observe.log import get_logger
from infaas.observe.metrics import Account, Metrics
from infaas.observe.trace import Span
from infaas.rpc.requirements import FAR_S, Scalar, bounded, read_requirements
from infaas.rpc.tensors import InferRequest
from infaas_controller.api.bulk.pool import Bulk
from infaas_controller.api.bulk.weigh import (
    is_large_classification,
    is_large_json,
    may_be_large_answer,
    named_classes,
)
from infaas_controller.api.headers import Caller, fresh_caller, fresh_request_id
from infaas_controller.api.intake import (
    Arrival,
    Outline,
    answer_parameters,
    answered_outputs,
    build_query,
    cost_usd,
    find_task,
    reading_deadline,
    time_s,
)
from infaas_controller.api.known import Known
from infaas_controller.api.spans import QuerySpans
from infaas_controller.api.turned import Alike
from infaas_controller.ports import Answer, Outcome, QueryFailedError, QueryService, Ran

HANDLES_KEPT = 1_024
_log = get_logger(__name__)
ExplainLookup = Callable[[str], Decision | None]


class Served(msgspec.Struct, frozen=True):
    """What an encoder needs of an answer."""

    outcome: Outcome
    version: str
    outputs: list[tuple[Tensor, bool]]
    parameters: dict[str, Scalar]
    deadline: float
    """On the controller's monotonic clock."""


class Ticket(msgspec.Struct, eq=False):
    """What is known of a request so far: enough to count it and to answer it, wherever it ends."""

    handle: str
    arrived_at: float
    priority: Priority = Priority.STANDARD
    items: int = 0
    outcome: Outcome | None = None
    caller: Caller = msgspec.field(default_factory=fresh_caller)
    span: Span | None = None
    """From when its inputs were read; None where nothing is traced."""


class Inference:
    """Shared by the REST and gRPC edges; holds no state of its own besides its collaborators."""

    def __init__(
        self,
        service: QueryService,
        clock: Clock,
        confidence: AccuracyConfidence,
        metrics: Metrics | None = None,
        explain_lookup: ExplainLookup | None = None,
        spans: QuerySpans | None = None,
        bulk: Bulk | None = None,
    ) -> None:
        self.service = service
        self.clock = clock
        self.bulk = bulk
        self.alike = Alike(service, clock)
        self._confidence = confidence
        self._metrics = metrics
        self._explain = explain_lookup or service.decision
        self._spans = spans
        self._last_wanted: dict[tuple[str, TenantName | None], Requirements] = {}
        """By handle and tenant."""
        self._accounts: dict[tuple[str, str | None, Priority], Account] = {}
        """Where answers are counted, for one view of the cluster."""
        self._accounts_of: ClusterView | None = None

    def ticket(self, handle: str) -> Ticket:
        return Ticket(handle, self.clock.now())

    @property
    def is_traced(self) -> bool:
        return self._spans is not None

    async def run(
        self,
        ticket: Ticket,
        version: int | None,
        task: Task,
        request: InferRequest,
        headers: Mapping[str, str],
        *,
        time_remaining_s: float | None = None,
    ) -> Served:
        """Raises InfaasError; the ticket then holds the outcome, if there was one."""
        current = find_task(self.service.view, ticket.handle)  # it took time to read the request
        query = self.query(ticket, version, current, request, headers, time_remaining_s=time_remaining_s)
        return await self.answered(ticket, task, request, query)

    async def answered(self, ticket: Ticket, task: Task, request: InferRequest, query: Query) -> Served:
        """What `request` asked for, once it is a query. Raises as `run`."""
        behind = None if self.bulk is None else self.bulk.behind()
        if behind is not None and may_be_large_answer(request, task, query.items):
            raise behind
        try:
            answer = await self.service.submit(query)
        except QueryFailedError as error:
            ticket.outcome = error.outcome
            raise
        ticket.outcome = answer.outcome
        classified = None
        if request.outputs:
            classified = await self._classified(ticket, answer, request, task, query.deadline)
        return self.served(answer, query, request, task, classified)

    def query(
        self,
        ticket: Ticket,
        version: int | None,
        task: Task,
        request: InferRequest,
        headers: Mapping[str, str],
        *,
        time_remaining_s: float | None = None,
        requirements: Requirements | None = None,
    ) -> Query:
        """What a request asks of the service, noted in the ticket. `requirements` are given where they were read
        before, as `wanted` does. Raises as `build_query`."""
        arrival = Arrival(ticket.arrived_at, time_remaining_s)
        caller = ticket.caller
        if self._spans is not None:
            ticket.span = self._spans.begin(caller, ticket.arrived_at)
        trace = caller.trace if ticket.span is None else ticket.span.context
        if requirements is None:
            has_deadline = time_remaining_s is not None
            requirements = self.wanted(ticket.handle, task, request, headers, has_deadline=has_deadline)
        own = bounded(requirements, time_remaining_s)
        basis = None if own is requirements else requirements
        query = build_query(ticket.handle, version, task, request, own, caller, arrival, trace, basis)
        ticket.priority, ticket.items = own.priority, query.items
        return query

    def query_known(self, known: Known[Any], version: int | None, inputs: tuple[Tensor, ...], at: float) -> Query:
        """Of a request that differs in nothing but values from one that was a query, has no ids of its own, and came
        then. Not where queries are traced."""
        outline = known.outline
        return Query(
            fresh_request_id(), known.handle, version, known.requirements, outline.items, outline.signature, inputs,
            outline.outputs, at, at + known.within_s,
        )  # fmt: skip

    def query_like(
        self,
        handle: str,
        version: int | None,
        inputs: tuple[Tensor, ...],
        outline: Outline,
        wanted: Requirements,
        at: float,
        caller: Caller | None,
        basis: Requirements | None = None,
    ) -> Query:
        """As `query`, of a request that differs in nothing but values from one that was a query, and came then; `basis`
        is what that one wanted, if a deadline of its own is what makes this one want something else. Without a caller,
        it is given an id. Not where queries are traced."""
        return Query(
            fresh_request_id() if caller is None else caller.request_id, handle, version, wanted, outline.items,
            outline.signature, inputs, outline.outputs, at,
            at + time_s(wanted),
            None if caller is None else caller.trace, basis,
        )  # fmt: skip

    def wanted(
        self, handle: str, task: Task, request: InferRequest, headers: Mapping[str, str], *, has_deadline: bool
    ) -> Requirements:
        """The requirements of a request, but for the deadline that its call may have. What is equal to the last of its
        handle and tenant is the same object: queries are decided on together by that. Raises as `read_requirements`."""
        wanted = read_requirements(
            headers,
            request.parameters,
            task.defaults,
            time_remaining_s=FAR_S if has_deadline else None,
            accuracy_confidence=self._confidence,
        )
        key = handle, wanted.tenant
        last = self._last_wanted.get(key)
        if last == wanted:
            return last
        if len(self._last_wanted) >= HANDLES_KEPT:
            self._last_wanted.clear()
        self._last_wanted[key] = wanted
        return wanted

    def served(
        self,
        answer: Answer,
        query: Query,
        request: InferRequest,
        task: Task,
        classified: Mapping[str, Tensor] | None = None,
    ) -> Served:
        """`classified` are the classes that were sorted out already. Raises InfaasError."""
        outcome = answer.outcome
        decision = self._explain(outcome.decision_id) if query.requirements.explain else None
        return Served(
            outcome,
            "" if outcome.version is None else str(outcome.version),
            answered_outputs(answer, request, task, classified),
            answer_parameters(outcome, decision),
            query.deadline,
        )

    async def rendered(self, ticket: Ticket, served: Served) -> dict[str, bytes | memoryview] | None:
        """The JSON of those outputs that are too large to be written on the loop. Raises as `run`."""
        bulk = self.bulk
        if bulk is None:
            return None
        large = [tensor for tensor, is_binary in served.outputs if not is_binary and is_large_json(tensor)]
        if not large:
            return None
        with _noting_lateness(ticket):
            return {tensor.name: await bulk.rendered(tensor, self._left_s(served.deadline)) for tensor in large}

    async def _classified(
        self, ticket: Ticket, answer: Answer, request: InferRequest, task: Task, deadline: float
    ) -> dict[str, Tensor] | None:
        """Those outputs asked for as classes that are too large to be sorted on the loop."""
        tops = {output.name: output.classes for output in request.outputs if output.classes}
        bulk = self.bulk
        if bulk is None or not tops:
            return None
        large = {
            tensor.name: (tensor, named_classes(tensor, tops[tensor.name]))
            for tensor in answer.outputs
            if tensor.name in tops and is_large_classification(tensor, tops[tensor.name])
        }
        with _noting_lateness(ticket):
            return {
                name: await bulk.classified(tensor, top, task.classes, self._left_s(deadline))
                for name, (tensor, top) in large.items()
            }

    def reading_s(
        self,
        ticket: Ticket,
        task: Task,
        headers: Mapping[str, str],
        parameters: Mapping[str, Scalar] | None = None,
        time_remaining_s: float | None = None,
    ) -> float:
        """How long a large request may be read: nobody waits for it past its query's deadline. Raises as `run` for
        requirements that cannot be understood."""
        arrival = Arrival(ticket.arrived_at, time_remaining_s)
        return self._left_s(reading_deadline(headers, parameters, task.defaults, arrival))

    def _left_s(self, deadline: float) -> float:
        return deadline - self.clock.now()

    def count_answer(self, ticket: Ticket, outcome: Outcome) -> None:
        """As `count`, of an answer; at less cost when it is a usual one."""
        is_usual = outcome.slo_met and not outcome.cold_start and outcome.fallback is None
        if not is_usual or self._metrics is None or self._spans is not None or ticket.caller.traceparent is not None:
            self.count(ticket, None)
            return
        account = self._account(self._metrics, ticket.handle, outcome.variant, ticket.priority)
        account.observe(self.clock.now() - ticket.arrived_at, outcome.queue_s, outcome.run_s, ticket.items)

    def count_together(
        self,
        handle: str,
        priority: Priority,
        ran: Ran,
        total_s: Sequence[float],
        queue_s: Sequence[float],
        items: int,
    ) -> None:
        """As `count`, of usual answers of one batch to queries alike, who are so many items in all. Not where queries
        are traced."""
        if self._metrics is not None:
            account = self._account(self._metrics, handle, ran.variant, priority)
            account.observe_together(total_s, queue_s, ran.run_s, items)

    def _account(self, metrics: Metrics, handle: str, variant: VariantName | None, priority: Priority) -> Account:
        view = self.service.view
        key = handle, variant, priority
        account = self._accounts.get(key) if view is self._accounts_of else None
        if account is None:
            if view is not self._accounts_of or len(self._accounts) >= HANDLES_KEPT:
                self._accounts.clear()
                self._accounts_of = view
            model = handle if view.level_of(handle) is not None else None
            account = metrics.account(model, variant, priority, cost_usd(view, variant, 1))
            self._accounts[key] = account
        return account

    def count_turned(
        self, handle: str, priority: Priority, code: Code, *, slo_met: bool | None, count: int = 1
    ) -> None:
        """As `count`, of so many queries that were turned away unread."""
        if self._metrics is not None:
            self._metrics.observe_turned(handle, code, priority, slo_met=slo_met, count=count)

    def count_rested(self, count: int) -> None:
        """So many connections are not read for a while."""
        if self._metrics is not None:
            self._metrics.observe_rested(count)

    def count(self, ticket: Ticket, error: InfaasError | None) -> None:
        """Call once per request, at its end."""
        if self._spans is not None:
            self._spans.end(ticket, error, self.clock.now())
        caller = ticket.caller
        if caller.traceparent is not None:
            _log.debug(
                "traced request ended",
                request_id=caller.request_id,
                traceparent=caller.traceparent,
                handle=ticket.handle[:128],
                code=None if error is None else error.code.value,
                decision_id=None if ticket.outcome is None else ticket.outcome.decision_id,
            )
        elif error is not None and ticket.outcome is None:
            # Without the text: it quotes what the caller sent.
            _log.debug(
                "refused before a decision",
                request_id=caller.request_id,
                handle=ticket.handle[:128],
                code=error.code.value,
            )
        if self._metrics is None:
            return
        view, outcome = self.service.view, ticket.outcome
        code: Code | None = None if error is None else error.code
        self._metrics.observe_request(
            model=ticket.handle if view.level_of(ticket.handle) is not None else None,
            code=code,
            priority=ticket.priority,
            total_s=self.clock.now() - ticket.arrived_at,
            variant=None if outcome is None else outcome.variant,
            queue_s=None if outcome is None else outcome.queue_s,
            run_s=None if outcome is None else outcome.run_s,
            slo_met=None if outcome is None else outcome.slo_met,
            is_fallback=outcome is not None and outcome.fallback is not None,
            is_cold_start=outcome is not None and outcome.cold_start,
            cost_usd=cost_usd(view, outcome.variant, ticket.items) if outcome is not None and code is None else 0.0,
        )


@contextmanager
def _noting_lateness(ticket: Ticket) -> Iterator[None]:
    """An answer that is not ready for its caller in time did not meet its objective, however early it was made."""
    try:
        yield
    except InfaasError as error:
        if error.code is Code.DEADLINE_PASSED and ticket.outcome is not None:
            ticket.outcome = msgspec.structs.replace(ticket.outcome, slo_met=False)
        raise
