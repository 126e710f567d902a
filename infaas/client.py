"""The client library: queries with requirements, and everything of the control plane, as Python calls.

Arrays go in and out; what the answer headers say about how a query was served comes back parsed. Every error is one
of `infaas.errors`, with the server's code and text. A `Client` may be shared by threads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx

from infaas import errors
from infaas.client_answers import Inference, QueryError, Requirements, Served, error_from, served_from
from infaas.client_tensors import Array, request_parts, response_arrays
from infaas.control import (
    AutoscalerDocument,
    BuildDocument,
    FleetDocument,
    FleetStepDocument,
    ForeignModelDocument,
    ModelDocument,
    ProfilingDocument,
    RegistrationDocument,
    ScalingStepDocument,
    SystemDocument,
    TaskDocument,
    VariantDocument,
    VersionDocument,
    WorkerDocument,
)
from infaas.domain.query import Decision
from infaas.domain.task import Task
from infaas.domain.variant import Profile
from infaas.rpc.codec import from_plain, to_plain

__all__ = ["Client", "Inference", "QueryError", "Requirements", "Served"]

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 60.0
UPLOAD_TIMEOUT_S = 600.0
BINARY_LENGTH = "inference-header-content-length"


class Client:
    """Calls one controller over REST. Close it, or use it in a `with` statement."""

    def __init__(self, url: str = DEFAULT_URL, token: str | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
        # What is local must not go through a proxy that the environment names.
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=timeout_s, limits=limits, trust_env=False, verify=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # Queries

    def infer(
        self,
        handle: str,
        inputs: Mapping[str, Array],
        requirements: Requirements | None = None,
        *,
        version: str | None = None,
        outputs: Sequence[str] = (),
        is_binary: bool = True,
        request_id: str | None = None,
    ) -> Inference:
        """Ask a task, a model or a variant. Raises QueryError, and UnavailableError when nobody answers."""
        body, raw = request_parts(inputs, outputs, is_binary=is_binary)
        if request_id is not None:
            body["id"] = request_id
        head = json.dumps(body).encode()
        headers = dict((requirements or Requirements()).headers())
        if is_binary:
            headers |= {BINARY_LENGTH: str(len(head)), "content-type": "application/octet-stream"}
        else:
            headers["content-type"] = "application/json"
        if request_id is not None:
            headers["x-request-id"] = request_id
        versioned = f"/versions/{_segment(version)}" if version else ""
        path = f"/v2/models/{_segment(handle)}{versioned}/infer"
        answer = self._send("POST", path, content=b"".join([head, *raw]), headers=headers)
        served = served_from(answer.headers)
        if answer.status_code != 200:
            raise QueryError(error_from(answer), served, answer.headers)
        length = int(answer.headers.get(BINARY_LENGTH, len(answer.content)))
        found = json.loads(answer.content[:length])
        return Inference(
            outputs=response_arrays(found["outputs"], answer.content[length:]),
            model=found["model_name"],
            version=found.get("model_version"),
            served=served,
            headers=answer.headers,
        )

    def metadata(self, handle: str) -> dict[str, Any]:
        """OIP's model metadata: inputs and outputs with datatypes and shapes."""
        return self._json("GET", f"/v2/models/{_segment(handle)}")

    def server(self) -> dict[str, Any]:
        return self._json("GET", "/v2")

    def is_ready(self) -> bool:
        """False when it says so, and when nobody answers."""
        try:
            return self._send("GET", "/v2/health/ready").status_code == 200
        except errors.UnavailableError:
            return False

    def system(self) -> SystemDocument:
        """What the controller knows of the parts it depends on."""
        return self._one("GET", "/v1/system", SystemDocument)

    # Tasks

    def tasks(self) -> list[TaskDocument]:
        return self._list("/v1/tasks", "tasks", TaskDocument)

    def task(self, name: str) -> TaskDocument:
        return self._one("GET", f"/v1/tasks/{_segment(name)}", TaskDocument)

    def create_task(self, task: Task) -> TaskDocument:
        return self._one("POST", "/v1/tasks", TaskDocument, json=to_plain(task))

    def set_task(self, name: str, changes: Mapping[str, Any]) -> TaskDocument:
        """`changes`: `defaults` (a mapping of requirements; null takes one back), `labels`, `classes`."""
        return self._one("PATCH", f"/v1/tasks/{_segment(name)}", TaskDocument, json=changes)

    # Models

    def models(self) -> list[ModelDocument]:
        return self._list("/v1/models", "models", ModelDocument)

    def model(self, name: str) -> ModelDocument:
        return self._one("GET", f"/v1/models/{_segment(name)}", ModelDocument)

    def register(
        self,
        file: Path,
        *,
        task: str,
        evaluation: Path | None = None,
        calibration: Path | None = None,
        name: str | None = None,
        metric: str | None = None,
        renames: Sequence[str] = (),
        labels: Sequence[str] = (),
        accuracy: float | None = None,
        isolation: str | None = None,
        idempotency_key: str | None = None,
    ) -> RegistrationDocument:
        """Upload a model; variants are made afterwards. `renames` are `theirs=ours`, `labels` are `key=value`."""
        fields: dict[str, str | list[str]] = {"task": task}
        optional = {"name": name, "metric": metric, "accuracy": None if accuracy is None else repr(accuracy)}
        optional["isolation"] = isolation
        fields |= {key: value for key, value in optional.items() if value is not None}
        fields |= {key: list(values) for key, values in (("map", renames), ("label", labels)) if values}
        uploads = {"file": file, "eval": evaluation, "calibration": calibration}
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        with ExitStack() as stack:
            files = {
                field: (path.name, stack.enter_context(_open(path)), "application/octet-stream")
                for field, path in uploads.items()
                if path is not None
            }
            return self._one(
                "POST",
                "/v1/models",
                RegistrationDocument,
                data=fields,
                files=files,
                headers=headers,
                timeout=UPLOAD_TIMEOUT_S,
            )

    def attach(
        self,
        model: str,
        *,
        task: str,
        server: str | None = None,
        version: str | None = None,
        evaluation: Path | None = None,
        name: str | None = None,
        metric: str | None = None,
        renames: Sequence[str] = (),
        labels: Sequence[str] = (),
        accuracy: float | None = None,
        price: float | None = None,
    ) -> RegistrationDocument:
        """Attach a model of a Triton server, `grpc://HOST:PORT`; None: the one that the controller is configured with.

        `price` is in USD per hour of one of the server's instances.
        """
        said = {"server": server, "version": version, "name": name, "metric": metric}
        said |= {
            "accuracy": None if accuracy is None else repr(accuracy),
            "price": None if price is None else repr(price),
        }
        parts: list[tuple[str, Any]] = [("model", (None, model)), ("task", (None, task))]
        parts += [(key, (None, value)) for key, value in said.items() if value is not None]
        parts += [("map", (None, value)) for value in renames] + [("label", (None, value)) for value in labels]
        with ExitStack() as stack:
            if evaluation is not None:
                parts.append(("eval", (evaluation.name, stack.enter_context(_open(evaluation)))))
            return self._one(
                "POST", "/v1/triton/models", RegistrationDocument, files=parts, timeout=UPLOAD_TIMEOUT_S
            )  # fmt: skip

    def triton_models(self, server: str | None = None) -> list[ForeignModelDocument]:
        """What a Triton server has; None: the one that the controller is configured with."""
        params = {"server": server} if server else {}
        return self._list("/v1/triton/models", "models", ForeignModelDocument, params=params)

    def versions(self, model: str) -> list[VersionDocument]:
        return self._list(f"/v1/models/{_segment(model)}/versions", "versions", VersionDocument)

    def version(self, model: str, version: int) -> VersionDocument:
        return self._one("GET", f"/v1/models/{_segment(model)}/versions/{version}", VersionDocument)

    def build(self, model: str, version: int) -> BuildDocument:
        return self._one("GET", f"/v1/models/{_segment(model)}/versions/{version}/build", BuildDocument)

    def watch_build(self, model: str, version: int) -> Iterator[BuildDocument]:
        """Every change of a build until it is over or the server ends the stream."""
        return self._events(f"/v1/models/{_segment(model)}/versions/{version}/build", BuildDocument)

    def rollback(self, model: str, version: int | None = None) -> ModelDocument:
        """Serve an earlier version again; None: the one before the current."""
        body = {} if version is None else {"to": version}
        return self._one("POST", f"/v1/models/{_segment(model)}/rollback", ModelDocument, json=body)

    def unregister(self, model: str) -> None:
        """Drain and retire all its versions."""
        self._checked("DELETE", f"/v1/models/{_segment(model)}")

    # Variants, workers, decisions

    def variants(self, *, task: str | None = None, model: str | None = None) -> list[VariantDocument]:
        wanted = {key: value for key, value in (("task", task), ("model", model)) if value}
        return self._list("/v1/variants", "variants", VariantDocument, params=wanted)

    def variant(self, name: str) -> VariantDocument:
        return self._one("GET", f"/v1/variants/{_segment(name)}", VariantDocument)

    def disable_variant(self, name: str) -> VariantDocument:
        return self._one("POST", f"/v1/variants/{_segment(name)}/disable", VariantDocument)

    def enable_variant(self, name: str) -> VariantDocument:
        return self._one("POST", f"/v1/variants/{_segment(name)}/enable", VariantDocument)

    def isolate_variant(self, name: str, isolation: str) -> VariantDocument:
        """`thread` or `process`, for instances that are loaded from now on."""
        path = f"/v1/variants/{_segment(name)}/isolation"
        return self._one("POST", path, VariantDocument, json={"isolation": isolation})

    def profile_variant(
        self, name: str, budget_s: float | None = None, *, idempotency_key: str | None = None
    ) -> ProfilingDocument:
        """Have a variant measured anew; None: the configured budget."""
        body = {} if budget_s is None else {"budget_s": budget_s}
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        path = f"/v1/variants/{_segment(name)}/profile"
        return self._one("POST", path, ProfilingDocument, json=body, headers=headers)

    def profiling(self, variant: str, number: int) -> ProfilingDocument:
        return self._one("GET", f"/v1/variants/{_segment(variant)}/profilings/{number}", ProfilingDocument)

    def profilings(self, variant: str) -> list[ProfilingDocument]:
        """Newest first."""
        return self._list(f"/v1/variants/{_segment(variant)}/profilings", "profilings", ProfilingDocument)

    def watch_profiling(self, variant: str, number: int) -> Iterator[ProfilingDocument]:
        """Every change until it is over or the server ends the stream."""
        return self._events(f"/v1/variants/{_segment(variant)}/profilings/{number}", ProfilingDocument)

    def profiles(self, variant: str) -> list[Profile]:
        """All that were ever measured, newest first: the first one counts."""
        return self._list(f"/v1/variants/{_segment(variant)}/profiles", "profiles", Profile)

    def workers(self) -> list[WorkerDocument]:
        return self._list("/v1/workers", "workers", WorkerDocument)

    def worker(self, worker: str) -> WorkerDocument:
        return self._one("GET", f"/v1/workers/{_segment(worker)}", WorkerDocument)

    def drain_worker(self, worker: str) -> WorkerDocument:
        return self._one("POST", f"/v1/workers/{_segment(worker)}/drain", WorkerDocument)

    def resume_worker(self, worker: str) -> WorkerDocument:
        return self._one("POST", f"/v1/workers/{_segment(worker)}/resume", WorkerDocument)

    def autoscaler(self) -> AutoscalerDocument:
        """How busy each variant is on each worker."""
        return self._one("GET", "/v1/autoscaler", AutoscalerDocument)

    def scaling_steps(
        self, limit: int = 50, *, worker: str | None = None, variant: str | None = None
    ) -> list[ScalingStepDocument]:
        """The newest first."""
        asked = {"limit": str(limit), "worker": worker, "variant": variant}
        params = {key: value for key, value in asked.items() if value is not None}
        return self._list("/v1/autoscaler/decisions", "steps", ScalingStepDocument, params=params)

    def fleet(self) -> FleetDocument:
        """How many workers there are and are wanted."""
        return self._one("GET", "/v1/autoscaler/fleet", FleetDocument)

    def fleet_steps(self, limit: int = 50) -> list[FleetStepDocument]:
        """The newest first."""
        return self._list("/v1/autoscaler/fleet/decisions", "steps", FleetStepDocument, params={"limit": str(limit)})

    def decision(self, key: str) -> Decision:
        """By decision id or request id."""
        return self._one("GET", f"/v1/decisions/{_segment(key)}", Decision)

    def decisions(self, limit: int = 20) -> list[Decision]:
        return self._list("/v1/decisions", "decisions", Decision, params={"limit": str(limit)})

    # The wire

    def _list(self, path: str, key: str, kind: type[T], **options: Any) -> list[T]:
        return from_plain(self._json("GET", path, **options)[key], list[kind])  # type: ignore[valid-type]

    def _one(self, method: str, path: str, kind: type[T], **options: Any) -> T:
        return from_plain(self._json(method, path, **options), kind)

    def _events(self, path: str, kind: type[T]) -> Iterator[T]:
        headers = {"accept": "text/event-stream"}
        try:
            with self._http.stream("GET", path, headers=headers, timeout=None) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise error_from(answer)
                for line in answer.iter_lines():
                    if line.startswith("data:"):
                        yield from_plain(json.loads(line[5:]), kind)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = self._checked(method, path, **options)
        try:
            found: dict[str, Any] = answer.json()
        except ValueError as error:
            raise errors.UnavailableError(f"{self.url}{path} did not answer with JSON; is it INFaaS?") from error
        return found

    def _checked(self, method: str, path: str, **options: Any) -> httpx.Response:
        answer = self._send(method, path, **options)
        if not answer.is_success:
            raise error_from(answer)
        return answer

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.TimeoutException as error:
            raise errors.UnavailableError(f"{self.url}{path} did not answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> errors.UnavailableError:
        return errors.UnavailableError(
            f"no controller answers at {self.url} ({error}): `infaas up` starts one, --url or INFAAS_URL names another"
        )


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise errors.InvalidError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def _segment(text: str) -> str:
    """One path segment, whatever the text holds."""
    return quote(text, safe="")
