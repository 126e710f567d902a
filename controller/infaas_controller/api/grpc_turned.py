"""`turned` over gRPC: the error that ends the call, or that a stream tells of the query."""

from __future__ import annotations

from infaas.domain.query import Query
from infaas.errors import InfaasError
from infaas_controller.api.turned import Turned
from infaas_controller.ports import QueryFailedError


class TurnedCall(Turned):
    """Made of one refusal."""

    __slots__ = ("error",)

    def __init__(self, query: Query, refusal: QueryFailedError, now: float) -> None:
        super().__init__(query, refusal.code, refusal.outcome, now)
        self.error = InfaasError(  # never raised: `refusal` holds the frames that it came through
            refusal.text,
            code=refusal.code,
            is_retryable=refusal.is_retryable,
            retry_after_s=refusal.retry_after_s,
            problems=refusal.problems,
        )
