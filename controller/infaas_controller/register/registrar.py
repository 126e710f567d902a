"""The model registrar: what control-plane calls do, and the leader's loops that carry their intentions out.

Calls write intentions into the catalogue and wake the loops; only the loops write the store, under the leadership's
fence. Both loops compare what should be with what is, so a crash anywhere is made good by the next comparison.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import NoReturn

from infaas.aio.every import every
from infaas.catalog.catalog import Catalog
from infaas.catalog.records import Claim, ModelRow
from infaas.clock import Clock
from infaas.control import (
    BuildDocument,
    ModelDocument,
    ProfilingDocument,
    RegistrationDocument,
    TaskDocument,
    VariantDocument,
    VersionDocument,
)
from infaas.domain.task import Task
from infaas.domain.variant import Isolation, Variant, VariantState
from infaas.errors import ConflictError, InfaasError, NotFoundError
from infaas.metrics import metric_names
from infaas.observe.log import get_logger
from infaas.repository.base import Repository
from infaas.rpc.codec import to_plain
from infaas.settings import Settings
from infaas.store.base import Lease, MetadataStore
from infaas_controller.register.attach import Attacher
from infaas_controller.register.attachment import AttachOptions
from infaas_controller.register.builds import Builds, known_version
from infaas_controller.register.documents import model_document, task_document, variant_document, version_document
from infaas_controller.register.frontier import dominated_by
from infaas_controller.register.inspector import Inspector
from infaas_controller.register.intake import Intake
from infaas_controller.register.isolation import known_deaths, to_isolate
from infaas_controller.register.options import (
    RegistrationOptions,
    TaskChange,
    Upload,
    changed_task,
    fingerprint,
    isolation_problem,
    raise_problems,
    task_problems,
)
from infaas_controller.register.profilings import Profilings
from infaas_controller.register.publication import ANSWERS, effective
from infaas_controller.register.reading import Reader
from infaas_controller.register.refill import Refill
from infaas_controller.register.results import ResultKeeper
from infaas_controller.register.signals import ended, follow_builds
from infaas_controller.register.switching import Loader, Switcher

_PERIOD_S = 0.25
_COMPARE_EVERY_S = 5.0
"""How often store and catalogue are compared when nothing seems to have changed."""
_log = get_logger(__name__)


class Registrar:
    """Owned by one event loop. `run_results` and `run_refill` belong to whoever leads; all else any controller may do.

    `lease` says which leadership the loops act under; None: nobody else could be leading.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: MetadataStore,
        repository: Repository,
        service: Loader,
        settings: Settings,
        clock: Clock,
        *,
        lease: Callable[[], Lease | None] | None = None,
        inspector: Inspector | None = None,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._service = service
        self._settings = settings
        self._clock = clock
        self._lease = lease
        self._builds = Builds(catalog, store)
        self.profilings = Profilings(catalog, store, settings, clock)
        """For reading; `profile_variant` orders one."""
        self._intake = Intake(
            catalog, repository, inspector or Inspector(), settings, clock, before_retry=self._builds.clear
        )  # fmt: skip
        self.attacher = Attacher(
            catalog, repository, inspector or Inspector(), settings, clock, before_retry=self._builds.clear
        )  # fmt: skip
        """For discovery; `attach` attaches."""
        self._results = ResultKeeper(catalog, clock)
        self._switcher = Switcher(catalog, service, clock)
        self._reader = Reader(catalog)
        self._refill = Refill(store, service, settings, clock, catalog.health, compare_every_s=_COMPARE_EVERY_S)
        self._absorb_at = 0.0
        self._wake_results = asyncio.Event()
        self._wake_refill = asyncio.Event()
        self._has_news = True

    @property
    def settings(self) -> Settings:
        return self._settings

    def close(self) -> None:
        """Blocking; once nobody calls any more and the loops have ended."""
        self.attacher.close()

    # What callers ask for

    async def create_task(
        self, task: Task, *, idempotency_key: str | None = None, actor: str = "local"
    ) -> TaskDocument:
        """Raises InvalidError with every problem, ConflictError when the name is taken."""
        raise_problems(task_problems(task, metric_names()))
        claim = _claim(idempotency_key, "task.create", to_plain(task))
        await asyncio.to_thread(self._catalog.create_task, task, at=self._clock.wall(), actor=actor, claim=claim)
        self._wake()
        return await self.describe_task(task.name)

    async def list_tasks(self) -> Sequence[TaskDocument]:
        reading = await self._reader.read()
        registered = reading.registered
        return [
            task_document(effective(task, self._settings), registered.models, registered.variants)
            for task in registered.tasks
        ]

    async def describe_task(self, name: str) -> TaskDocument:
        """Raises NotFoundError."""
        for document in await self.list_tasks():
            if document.task.name == name:
                return document
        raise NotFoundError(f"there is no task {name!r}")

    async def set_task(self, name: str, change: TaskChange, *, actor: str = "local") -> TaskDocument:
        """Change defaults, labels or classes. Raises NotFoundError, InvalidError, or ConflictError when the
        configuration says otherwise, since that would win."""
        configured = self._settings.tasks.get(name)
        if configured is not None:
            fixed = {key for key, value in configured.defaults.model_dump().items() if value is not None}
            if held := sorted(fixed & set(change.defaults)):
                raise ConflictError(
                    f"the configuration sets {', '.join(held)} (tasks.{name}.defaults); change it there"
                )
        update = self._catalog.update_task
        await asyncio.to_thread(update, name, lambda t: changed_task(t, change), at=self._clock.wall(), actor=actor)
        self._wake()
        return await self.describe_task(name)

    async def register(
        self,
        upload: Upload,
        options: RegistrationOptions,
        *,
        idempotency_key: str | None = None,
        actor: str = "local",
    ) -> RegistrationDocument:
        """Check and take in a model file; its variants are made later. The same file is the same version.

        Raises InvalidError with every problem, ConflictError, TooLargeError, UnavailableError.
        """
        document = await self._intake.register(upload, options, idempotency_key, actor)
        self._wake()
        return document

    async def attach(
        self, options: AttachOptions, evaluation: Path | None = None, *, actor: str = "local"
    ) -> RegistrationDocument:
        """Check and take in a model of a Triton server; it is measured later. The same thing is the same version.

        Raises InvalidError with every problem, NotFoundError, ConflictError, UnavailableError.
        """
        document = await self.attacher.attach(options, evaluation, actor)
        self._wake()
        return document

    async def list_models(self, task: str | None = None) -> Sequence[ModelDocument]:
        rows = [row for row in await asyncio.to_thread(self._catalog.models) if task in (None, row.task)]
        return [await asyncio.to_thread(self._model_document, row) for row in rows]

    async def describe_model(self, name: str) -> ModelDocument:
        """Unregistered models too: their history is kept. Raises NotFoundError."""
        return await asyncio.to_thread(lambda: self._model_document(self._known_model(name)))

    async def describe_version(self, model: str, number: int) -> VersionDocument:
        """Raises NotFoundError."""

        def work() -> VersionDocument:
            row, version = self._known_model(model), known_version(self._catalog, model, number)
            return version_document(row, version, self._catalog.results(version.id))

        return await asyncio.to_thread(work)

    async def rollback(
        self, model: str, to: int | None = None, *, idempotency_key: str | None = None, actor: str = "local"
    ) -> ModelDocument:
        """Have another version serve: `to`, or the newest READY one before the current.

        It is warmed first; until then the document's reason says so. Raises NotFoundError, PreconditionError.
        """
        await asyncio.to_thread(self._known_model, model)
        claim = _claim(idempotency_key, "model.rollback", [model, to])
        await asyncio.to_thread(self._catalog.want, model, to, at=self._clock.wall(), actor=actor, claim=claim)
        self._wake()
        return await self.describe_model(model)

    async def unregister(self, model: str, *, actor: str = "local") -> ModelDocument:
        """Take a model out of service for good: it leaves the view, then its instances drain. History stays, and
        registering the same file again revives it. Raises NotFoundError."""
        await asyncio.to_thread(self._catalog.retire_model, model, at=self._clock.wall(), actor=actor)
        self._wake()
        return await self.describe_model(model)

    async def list_variants(self, *, task: str | None = None, model: str | None = None) -> Sequence[VariantDocument]:
        """Variants of every version that is READY. Raises NotFoundError for a model that was never registered."""
        if model is not None:
            await asyncio.to_thread(self._known_model, model)
        return [d for d in await self._variant_documents() if task in (None, d.task) and model in (None, d.model)]

    async def describe_variant(self, name: str) -> VariantDocument:
        """Raises NotFoundError."""
        for document in await self._variant_documents():
            if document.name == name:
                return document
        variant = await asyncio.to_thread(self._catalog.variant, name)
        if variant is None:
            raise NotFoundError(f"there is no variant {name!r}")
        return variant_document(variant, {}, self._service.view, {})

    async def disable_variant(self, name: str, reason: str = "", *, actor: str = "local") -> VariantDocument:
        """No query is given it any more, and its instances drain. Raises NotFoundError, PreconditionError."""
        return await self._set_variant(name, VariantState.DISABLED, reason or f"disabled by {actor}", actor)

    async def enable_variant(self, name: str, *, actor: str = "local") -> VariantDocument:
        """Raises NotFoundError, PreconditionError."""
        return await self._set_variant(name, VariantState.READY, "", actor)

    async def profile_variant(
        self,
        name: str,
        budget_s: float | None = None,
        *,
        idempotency_key: str | None = None,
        actor: str = "local",
    ) -> ProfilingDocument:
        """Have a variant measured anew while it serves on; None: the configured budget.

        Raises NotFoundError, InvalidError, PreconditionError for one that is retired or still being built, and
        ConflictError for one that is being measured with another budget.
        """
        document = await self.profilings.order(name, budget_s, idempotency_key, actor)
        self._wake()
        return document

    async def isolate_variant(self, name: str, isolation: str, *, actor: str = "local") -> VariantDocument:
        """Say where its instances run from now on; those that are loaded stay where they are until they are loaded
        again, and instances that have died by now do not speak against it. Raises NotFoundError, InvalidError."""
        raise_problems([problem] if (problem := isolation_problem(isolation)) else [])
        change, wanted = self._catalog.isolate_variant, Isolation(isolation)
        dead = known_deaths(self._service.view, name)
        await asyncio.to_thread(
            change, name, wanted, f"asked for by {actor}", at=self._clock.wall(), actor=actor, pardoned=dead
        )
        self._wake()
        return await self.describe_variant(name)

    async def build(self, model: str, number: int) -> BuildDocument:
        """Where a version's build stands. Without the store, its state alone. Raises NotFoundError."""
        return await self._builds.document(model, number)

    def watch_build(self, model: str, number: int) -> AsyncIterator[BuildDocument | None]:
        """The build's document now and after every change, until it is over; None now and then when nothing happens.

        Raises NotFoundError. While the store is lost, the documents carry no progress.
        """
        return self._builds.watch(model, number)

    # What the leader does

    async def run_results(self) -> NoReturn:
        """Copy results into the catalogue, warm and switch. Eternal; belongs to the leader."""
        self._has_news = True
        watcher = asyncio.create_task(follow_builds(self._store, self._note_news), name="registrar-answers")
        try:
            await every(
                _PERIOD_S, self.step_results, wake=self._wake_results, clock=self._clock, name="registrar-results"
            )  # fmt: skip
        finally:
            await ended(watcher)

    async def run_refill(self) -> NoReturn:
        """Keep the store saying what the catalogue says, whatever happens to it. Eternal; belongs to the leader."""
        self._refill.forget()
        await every(_PERIOD_S, self.step_refill, wake=self._wake_refill, clock=self._clock, name="registrar-refill")

    async def step_results(self) -> None:
        """One turn of `run_results`. Raises UnavailableError when store or catalogue are lost."""
        if not self._is_leading():
            return
        now = self._clock.now()
        if self._has_news or now >= self._absorb_at:
            self._has_news = False
            try:
                records = (await self._store.list(ANSWERS)).records
                has_changed = await self._results.absorb(records)
            except InfaasError:
                self._has_news = True
                raise
            self._absorb_at = now + _COMPARE_EVERY_S
            if has_changed:
                self._wake_refill.set()
        registered = (await self._reader.read()).registered
        await self._isolate_the_dead(registered.variants)
        tasks = [effective(task, self._settings) for task in registered.tasks]
        if await self._switcher.step(tasks, registered.models, registered.variants):
            self._wake_refill.set()

    async def _isolate_the_dead(self, variants: Sequence[Variant]) -> None:
        """Those whose instances died where they harm others get processes of their own from now on."""
        change = self._catalog.isolate_variant
        for name, (death, reason) in to_isolate(self._service.view, variants).items():
            at = self._clock.wall()
            if await asyncio.to_thread(change, name, Isolation.PROCESS, reason, at=at, actor="registrar", death=death):
                _log.warning("variant isolated", variant=name, reason=reason)
                self._wake_refill.set()

    async def step_refill(self) -> None:
        """One turn of `run_refill`. Raises UnavailableError, or PreconditionError when the leadership was lost."""
        lease = None if self._lease is None else self._lease()
        if lease is None and self._lease is not None:
            self._refill.rest()
            return
        await self._refill.step(await self._reader.read(), lease)

    # Helpers

    def _is_leading(self) -> bool:
        return self._lease is None or self._lease() is not None

    def _wake(self) -> None:
        self._wake_refill.set()
        self._wake_results.set()

    def _note_news(self) -> None:
        self._has_news = True
        self._wake_results.set()

    async def _variant_documents(self) -> Sequence[VariantDocument]:
        registered = (await self._reader.read()).registered
        current: dict[str, int | None] = {row.name: row.current for row in registered.models}
        serving = [v for v in registered.variants if current.get(v.model) == v.version]
        dominators = dominated_by(serving)
        return [variant_document(v, current, self._service.view, dominators) for v in registered.variants]

    async def _set_variant(self, name: str, state: VariantState, reason: str, actor: str) -> VariantDocument:
        change = self._catalog.set_variant_state
        await asyncio.to_thread(change, name, state, reason, at=self._clock.wall(), actor=actor)
        self._wake()
        return await self.describe_variant(name)

    def _model_document(self, row: ModelRow) -> ModelDocument:
        versions = self._catalog.versions(row.name)
        view = self._service.view
        return model_document(row, versions, {v.id: self._catalog.results(v.id) for v in versions}, view)

    def _known_model(self, name: str) -> ModelRow:
        row = self._catalog.model(name)
        if row is None:
            raise NotFoundError(f"there is no model {name!r}")
        return row


def _claim(key: str | None, *said: object) -> Claim | None:
    return None if key is None else Claim(key, fingerprint(*said))
