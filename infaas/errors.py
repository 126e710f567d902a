"""The one error hierarchy. Every error carries a stable code, whether a retry can help, and the facts a reader needs.

How a code becomes an HTTP or gRPC status is written once, in `infaas.rpc.edges`.
"""

from __future__ import annotations

from collections.abc import Sequence

from infaas.domain.query import Candidate, Code


class InfaasError(Exception):
    """Base of everything this system raises on purpose.

    `text` says what was wrong, with the offending value and what would be right. `problems` lists every finding when
    one check found several.
    """

    code: Code = Code.INTERNAL
    is_retryable: bool = False

    def __init__(
        self,
        text: str,
        *,
        code: Code | None = None,
        is_retryable: bool | None = None,
        retry_after_s: float | None = None,
        problems: Sequence[str] = (),
    ) -> None:
        super().__init__(text)
        self.text = text
        if code is not None:
            self.code = code
        if is_retryable is not None:
            self.is_retryable = is_retryable
        self.retry_after_s = retry_after_s
        self.problems = tuple(problems)


class InvalidError(InfaasError):
    """Bad tensor, shape, datatype, header, parameter, file or setting."""

    code = Code.INVALID


class NotFoundError(InfaasError):
    code = Code.NOT_FOUND


class ConflictError(InfaasError):
    """Another writer was first, or the name is taken."""

    code = Code.CONFLICT


class PreconditionError(InfaasError):
    """A compare-and-set found another version than expected, or a lease was lost (its fence is too old)."""

    code = Code.PRECONDITION


class UnauthenticatedError(InfaasError):
    code = Code.UNAUTHENTICATED


class TooLargeError(InfaasError):
    code = Code.TOO_LARGE


class UnsupportedError(InfaasError):
    code = Code.UNSUPPORTED


class UnavailableError(InfaasError):
    """A part this needs is not there now."""

    code = Code.UNAVAILABLE
    is_retryable = True


class ModelError(InfaasError):
    """The model itself raised."""

    code = Code.MODEL_FAILED


class SettingsError(InfaasError):
    """An unknown key, a malformed value, or two settings that exclude each other."""

    code = Code.INVALID


class RefusedError(InfaasError):
    """A query that was not executed; `candidates` are the variants looked at and why each was ruled out."""

    def __init__(
        self,
        text: str,
        *,
        code: Code,
        retry_after_s: float | None = None,
        candidates: Sequence[Candidate] = (),
    ) -> None:
        super().__init__(text, code=code, is_retryable=retry_after_s is not None, retry_after_s=retry_after_s)
        self.candidates = tuple(candidates)
