"""An error of ours as the end of a gRPC call: status, details, and what REST says in the fields of an answer."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc

from infaas.errors import InfaasError
from infaas.rpc.edges import edge_of, retry_after_s, status_text
from infaas_controller.api.headers import answer_fields, error_fields
from infaas_controller.api.service import Ticket

CODE_KEY = "x-infaas-code"


async def abort(context: Any, error: InfaasError, ticket: Ticket, *, is_query: bool) -> NoReturn:
    """Ends the call: always raises."""
    ending = context.abort(*_said(error, ticket, is_query=is_query))
    del context, error  # the call keeps what is raised, which keeps this frame: no cycle is to be left
    await ending
    raise AssertionError("gRPC did not end the call")


def _said(
    error: InfaasError, ticket: Ticket, *, is_query: bool
) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    fields = answer_fields(ticket.caller, ticket.outcome) + error_fields(error, is_query=is_query)
    fields.append((CODE_KEY, error.code.value))
    wait_s = retry_after_s(error)
    if wait_s is not None and error.is_retryable:
        # What gRPC's own retry policies obey.
        fields.append(("grpc-retry-pushback-ms", str(int(wait_s * 1000))))
    return grpc.StatusCode[edge_of(error.code).grpc], status_text(error.text), tuple(fields)
