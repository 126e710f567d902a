"""Attaches models of Triton servers: asks the server, checks, stores a reference, writes it into the catalogue.

From there on a reference goes the way of every upload: a generator measures it, the registrar publishes and switches.
Attaching the same thing again is the same version, so that repeating a request is safe.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from infaas.catalog.catalog import Catalog
from infaas.catalog.records import Registration, TaskAppearedError, VersionRow
from infaas.clock import Clock
from infaas.control import ForeignModelDocument, RegistrationDocument
from infaas.domain.ids import Digest, ModelName, TaskName
from infaas.domain.lifecycle import BuildState
from infaas.domain.query import Level
from infaas.domain.task import Task
from infaas.errors import ConflictError, InvalidError, UnavailableError
from infaas.metrics import metric_names
from infaas.repository.base import Repository
from infaas.rpc.codec import encode
from infaas.settings import Settings
from infaas.triton.address import url_problem
from infaas.triton.reference import Reference
from infaas_controller.register.attachment import (
    Attachment,
    AttachOptions,
    attach_problems,
    plan_attachment,
)
from infaas_controller.register.foreign import ForeignServers
from infaas_controller.register.inspection import InspectionRequest
from infaas_controller.register.inspector import Inspector, memory_bound
from infaas_controller.register.options import DEFAULT_METRIC, clash, joined, raise_problems
from infaas_controller.register.publication import OPEN

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class _Checked:
    task: Task | None
    reference: Reference
    attachment: Attachment
    warnings: tuple[str, ...]
    rows: int | None


class Attacher:
    """Blocking work runs in threads."""

    def __init__(
        self,
        catalog: Catalog,
        repository: Repository,
        inspector: Inspector,
        settings: Settings,
        clock: Clock,
        before_retry: Callable[[VersionRow], Awaitable[None]],
    ) -> None:
        """`before_retry` clears what an earlier build of a version left in the store."""
        self._before_retry = before_retry
        self._catalog = catalog
        self._repository = repository
        self._inspector = inspector
        self._settings = settings
        self._clock = clock
        self._servers = ForeignServers(settings.worker.triton_url)

    def close(self) -> None:
        """Blocking; once nobody calls any more."""
        self._servers.close()

    async def discover(self, url: str | None) -> tuple[ForeignModelDocument, ...]:
        """What a server has, and what of it can be attached. Raises InvalidError, UnavailableError."""
        return await self._servers.discover(self._server_url(url))

    async def attach(self, options: AttachOptions, evaluation: Path | None, actor: str) -> RegistrationDocument:
        """Raises InvalidError with every problem, NotFoundError, ConflictError, UnavailableError."""
        for _ in range(_ATTEMPTS):
            checked = await self._check(options, evaluation)
            try:
                return await self._take_in(options, checked, evaluation, actor)
            except TaskAppearedError:
                continue
        raise ConflictError(
            f"task {options.task!r} keeps changing while this model is checked; try again", is_retryable=True
        )

    def url(self, url: str | None) -> str:
        """The one asked for, or the configured one. Raises InvalidError."""
        return self._server_url(url)

    def _server_url(self, url: str | None) -> str:
        found = url or self._settings.worker.triton_url
        if found is None:
            raise InvalidError("no Triton server is named: give --triton grpc://HOST:PORT, or set worker.triton_url")
        if problem := url_problem(found):
            raise InvalidError(problem)
        return found.rstrip("/")

    async def _check(self, options: AttachOptions, evaluation: Path | None) -> _Checked:
        task = await asyncio.to_thread(self._catalog.task, options.task)
        problems = attach_problems(options, task, metric_names())
        raise_problems(problems)
        facts = await self._servers.facts(options.url, options.server_model, options.server_version)
        attachment = plan_attachment(facts, options, task, self._settings.generator.max_batch_size)
        found = list(attachment.problems)
        warnings = list(attachment.warnings)
        rows = None
        if evaluation is not None and attachment.inputs:
            answer = await self._inspector.inspect(self._data_request(options, task, attachment, evaluation))
            found += answer.problems
            warnings += answer.warnings
            rows = answer.evaluation_rows
        raise_problems(found)
        if attachment.reference is None:
            raise InvalidError(f"model {options.server_model!r} cannot be attached")
        if options.accuracy is not None and evaluation is not None:
            warnings.append("the declared accuracy is ignored: the evaluation data say what is measured")
        if options.accuracy is None and evaluation is None:
            warnings.append(
                "neither evaluation data nor an accuracy is given: queries with an accuracy floor never get this model"
            )
        return _Checked(task, attachment.reference, attachment, tuple(warnings), rows)

    def _data_request(
        self, options: AttachOptions, task: Task | None, attachment: Attachment, evaluation: Path
    ) -> InspectionRequest:
        made = task or _task(options, attachment)
        return InspectionRequest(
            model="",
            adapted="",
            metric=made.metric,
            task=made,
            evaluation=str(evaluation),
            max_bytes=self._settings.controller.max_upload_bytes,
            memory_bytes=memory_bound(evaluation),
            is_data_only=True,
        )

    async def _take_in(
        self, options: AttachOptions, checked: _Checked, evaluation: Path | None, actor: str
    ) -> RegistrationDocument:
        """Files first, then the row that names them."""
        artifact = await asyncio.to_thread(self._store_reference, checked.reference)
        evaluated = None if evaluation is None else await asyncio.to_thread(self._repository.put_file, evaluation)
        task = checked.task or _task(options, checked.attachment)
        await asyncio.to_thread(self._refuse_clash, options)
        registration = Registration(
            task=task,
            is_task_known=checked.task is not None,
            model=ModelName(options.model),
            labels=options.labels,
            original=artifact,
            artifact=artifact,
            evaluation=evaluated,
            calibration=None,
            metric=task.metric,
            declared_accuracy=options.accuracy if evaluation is None else None,
            fixed_batch=None,  # the reference says so itself
            evaluation_rows=checked.rows,
            warnings=checked.warnings,
        )
        known = await asyncio.to_thread(self._catalog.find_version, options.model, artifact)
        if known is not None and known.state not in (*OPEN, BuildState.READY):
            await self._before_retry(known)
        registered = await asyncio.to_thread(
            self._catalog.register, registration, at=self._clock.wall(), actor=actor
        )  # fmt: skip
        version = registered.version
        return RegistrationDocument(
            model=version.model,
            version=version.number,
            task=options.task,
            state=version.state,
            is_new=registered.is_new,
            created_task=registered.created_task,
            location=f"/v1/models/{version.model}/versions/{version.number}",
            warnings=checked.warnings,
        )

    def _refuse_clash(self, options: AttachOptions) -> None:
        model = self._catalog.model(options.model)
        clashes = [
            clash(options.task, Level.TASK, self._catalog.level_of(options.task)),
            clash(options.model, Level.MODEL, self._catalog.level_of(options.model)),
        ]
        if model is not None and model.task != options.task:
            clashes.append(
                f"model {options.model!r} solves task {model.task!r}, not {options.task!r}; choose another --name"
            )
        found = [text for text in clashes if text is not None]
        if found:
            raise ConflictError(joined(found), problems=found)

    def _store_reference(self, reference: Reference) -> Digest:
        self._repository.join(self._catalog.identity())
        data = encode(reference)
        run = self._settings.state_dir / "run"
        try:
            run.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="attach-", dir=run) as folder:
                path = Path(folder) / f"{hashlib.sha256(data).hexdigest()}.json"
                path.write_bytes(data)
                return self._repository.put_file(path)
        except OSError as error:
            raise UnavailableError(f"the reference cannot be stored: {error}") from error


def _task(options: AttachOptions, attachment: Attachment) -> Task:
    return Task(TaskName(options.task), attachment.inputs, attachment.outputs, options.metric or DEFAULT_METRIC)
