"""Takes an upload in: checks it, stores its files, writes it into the catalogue. Nothing is published here.

Order matters: files first, then the catalogue's row that names them. A crash before the row leaves bytes that nobody
names; after it, everything needed to build is safe, and the registrar's loops go on from there.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from infaas.catalog.catalog import Catalog
from infaas.catalog.records import Registered, Registration, TaskAppearedError, VersionRow
from infaas.clock import Clock
from infaas.control import RegistrationDocument
from infaas.domain.ids import Digest, ModelName, TaskName
from infaas.domain.lifecycle import BuildState
from infaas.domain.query import Level
from infaas.domain.task import Task
from infaas.domain.variant import Isolation
from infaas.errors import ConflictError, TooLargeError, UnavailableError
from infaas.metrics import metric_names
from infaas.repository.base import Repository
from infaas.rpc.codec import decode, encode, to_plain
from infaas.settings import Settings
from infaas_controller.register.inspection import InspectionAnswer, InspectionRequest
from infaas_controller.register.inspector import Inspector, memory_bound
from infaas_controller.register.options import (
    DEFAULT_METRIC,
    RegistrationOptions,
    Upload,
    clash,
    fingerprint,
    joined,
    model_name,
    option_problems,
    raise_problems,
)
from infaas_controller.register.publication import OPEN

_ATTEMPTS = 5
"""A task or version that appears in between sends a registration back to its check; it cannot happen for ever."""


@dataclass(frozen=True, slots=True)
class _Digests:
    model: Digest
    evaluation: Digest | None
    calibration: Digest | None


@dataclass(frozen=True, slots=True)
class _Known:
    """What the catalogue says about the names and the file of an upload."""

    task: Task | None
    version: VersionRow | None
    current: int | None
    problems: tuple[str, ...]
    is_clash: bool


class Intake:
    """Blocking work runs in threads. `before_retry` clears what an earlier build of a version left in the store."""

    def __init__(
        self,
        catalog: Catalog,
        repository: Repository,
        inspector: Inspector,
        settings: Settings,
        clock: Clock,
        before_retry: Callable[[VersionRow], Awaitable[None]],
    ) -> None:
        self._catalog = catalog
        self._repository = repository
        self._inspector = inspector
        self._settings = settings
        self._clock = clock
        self._before_retry = before_retry

    async def register(
        self, upload: Upload, options: RegistrationOptions, idempotency_key: str | None, actor: str
    ) -> RegistrationDocument:
        """Raises InvalidError with every problem, ConflictError, TooLargeError, UnavailableError."""
        self._refuse_too_large(upload)
        digests = await asyncio.to_thread(_digests, upload)
        if idempotency_key is None:
            return await self._register(upload, options, digests, actor)
        said = fingerprint(to_plain(options), to_plain(digests), model_name(upload, options))
        now = self._clock.wall()
        kept = await asyncio.to_thread(self._catalog.claim_key, idempotency_key, said, at=now)
        if kept is not None:
            return decode(kept, RegistrationDocument)
        document = await self._register(upload, options, digests, actor)
        await asyncio.to_thread(self._catalog.keep_answer, idempotency_key, encode(document).decode())
        return document

    async def _register(
        self, upload: Upload, options: RegistrationOptions, digests: _Digests, actor: str
    ) -> RegistrationDocument:
        for _ in range(_ATTEMPTS):
            known = await asyncio.to_thread(self._look_up, upload, options, digests)
            if known.version is not None and not known.problems and _is_alive(known.version):
                return _document(options, known.version, warnings=_repeat_warnings(known, digests, options))
            try:
                return await self._take_in(upload, options, digests, known, actor)
            except TaskAppearedError:
                continue
        raise ConflictError(
            f"task {options.task!r} keeps changing while this model is checked; try again", is_retryable=True
        )

    def _look_up(self, upload: Upload, options: RegistrationOptions, digests: _Digests) -> _Known:
        name = model_name(upload, options)
        task = self._catalog.task(options.task)
        model = self._catalog.model(name)
        clashes = [
            clash(options.task, Level.TASK, self._catalog.level_of(options.task)),
            clash(name, Level.MODEL, self._catalog.level_of(name)),
        ]
        if model is not None and model.task != options.task:
            clashes.append(f"model {name!r} solves task {model.task!r}, not {options.task!r}; choose another --name")
        clashed = [text for text in clashes if text is not None]
        problems = option_problems(upload, options, task, metric_names())
        version = self._catalog.find_version(name, digests.model)
        is_clash = bool(clashed) and not problems
        return _Known(task, version, model.current if model else None, (*problems, *clashed), is_clash)

    async def _take_in(
        self, upload: Upload, options: RegistrationOptions, digests: _Digests, known: _Known, actor: str
    ) -> RegistrationDocument:
        with _workspace(self._settings.state_dir) as folder:
            adapted = Path(folder) / "adapted.onnx"
            metric = options.metric or (known.task.metric if known.task else DEFAULT_METRIC)
            answer = await self._inspector.inspect(
                _request(upload, options, known.task, metric, adapted, self._settings)
            )
            problems = (*known.problems, *answer.problems)
            if known.is_clash and not answer.problems:
                raise ConflictError(joined(problems), problems=problems)
            raise_problems(problems)
            artifact = await asyncio.to_thread(self._store_files, upload, adapted)
        registration = _registration(upload, options, digests, known.task, answer, artifact, metric)
        if known.version is not None:
            await self._before_retry(known.version)
        registered = await asyncio.to_thread(
            self._catalog.register, registration, at=self._clock.wall(), actor=actor
        )  # fmt: skip
        return _registered_document(options, registered, registration.warnings)

    def _store_files(self, upload: Upload, adapted: Path) -> Digest:
        """Everything the version names, in the repository before the catalogue names it."""
        self._repository.join(self._catalog.identity())
        for path in (upload.model, upload.evaluation, upload.calibration):
            if path is not None:
                self._repository.put_file(path)
        return self._repository.put_file(adapted)

    def _refuse_too_large(self, upload: Upload) -> None:
        size = sum(path.stat().st_size for path in (upload.model, upload.evaluation, upload.calibration) if path)
        limit = self._settings.controller.max_upload_bytes
        if size > limit:
            raise TooLargeError(
                f"the files of this registration are too large: {size:,} bytes; at most {limit:,} are taken "
                "(controller.max_upload_bytes)"
            )


def _is_alive(version: VersionRow) -> bool:
    return version.state in (*OPEN, BuildState.READY)


def _workspace(state_dir: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder on the state's disk: /tmp may be memory."""
    run = state_dir / "run"
    try:
        run.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="register-", dir=run)
    except OSError as error:
        raise UnavailableError(f"no working folder can be made in {run}: {error}") from error


def _request(
    upload: Upload, options: RegistrationOptions, task: Task | None, metric: str, adapted: Path, settings: Settings
) -> InspectionRequest:
    return InspectionRequest(
        model=str(upload.model),
        adapted=str(adapted),
        metric=metric,
        task=task,
        mapping=options.mapping,
        evaluation=None if upload.evaluation is None else str(upload.evaluation),
        calibration=None if upload.calibration is None else str(upload.calibration),
        max_bytes=settings.controller.max_upload_bytes,
        memory_bytes=memory_bound(upload.model, upload.evaluation, upload.calibration),
    )


def _registration(
    upload: Upload,
    options: RegistrationOptions,
    digests: _Digests,
    task: Task | None,
    answer: InspectionAnswer,
    artifact: Digest,
    metric: str,
) -> Registration:
    warnings = list(answer.warnings)
    declared = options.accuracy
    if declared is not None and digests.evaluation is not None:
        warnings.append("the declared accuracy is ignored: the evaluation data say what is measured")
        declared = None
    return Registration(
        task=task or Task(TaskName(options.task), answer.inputs, answer.outputs, metric),
        is_task_known=task is not None,
        model=ModelName(model_name(upload, options)),
        labels=options.labels,
        original=digests.model,
        artifact=artifact,
        evaluation=digests.evaluation,
        calibration=digests.calibration,
        metric=metric,
        declared_accuracy=declared,
        fixed_batch=answer.fixed_batch,
        evaluation_rows=answer.evaluation_rows,
        warnings=tuple(warnings),
        isolation=Isolation(options.isolation) if options.isolation is not None else Isolation.THREAD,
    )


def _repeat_warnings(known: _Known, digests: _Digests, options: RegistrationOptions) -> tuple[str, ...]:
    """What a caller who registers a file again may expect to happen and does not."""
    version = known.version
    if version is None:
        return ()
    found = list(version.warnings)
    if digests.evaluation is not None and digests.evaluation != version.evaluation:
        found.append(f"this file is version {version.number} already; its evaluation data stay as they were")
    if options.isolation not in (None, version.isolation.value):
        found.append(
            f"this file is version {version.number} already; its variants' isolation stays as it was, "
            "`infaas variant isolate` changes it"
        )
    if known.current is not None and known.current > version.number:
        found.append(
            f"this file is version {version.number} already and version {known.current} serves; "
            f"`infaas model rollback {version.model} --to {version.number}` makes it serve again"
        )
    return tuple(found)


def _registered_document(
    options: RegistrationOptions, registered: Registered, warnings: tuple[str, ...]
) -> RegistrationDocument:
    document = _document(options, registered.version, warnings=warnings)
    return replace(document, is_new=registered.is_new, created_task=registered.created_task)


def _document(options: RegistrationOptions, version: VersionRow, *, warnings: tuple[str, ...]) -> RegistrationDocument:
    return RegistrationDocument(
        model=version.model,
        version=version.number,
        task=options.task,
        state=version.state,
        is_new=False,
        created_task=False,
        location=f"/v1/models/{version.model}/versions/{version.number}",
        warnings=warnings,
    )


def _digests(upload: Upload) -> _Digests:
    return _Digests(
        _digest(upload.model),
        None if upload.evaluation is None else _digest(upload.evaluation),
        None if upload.calibration is None else _digest(upload.calibration),
    )


def _digest(path: Path) -> Digest:
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())
