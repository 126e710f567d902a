"""The generator program: finds builds in the store, leases one at a time, and runs it to its end.

Level-triggered: it looks at every order that has no final result, whenever an order changes and at least every half
lease. So an order whose generator died is taken up by another one, or by this one restarted, once the lease runs out.
On SIGTERM the child is killed, the lease released, and the rest left to the next.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from infaas import machine
from infaas.aio.every import every
from infaas.clock import Clock, SystemClock
from infaas.domain.build import BuildOrder
from infaas.domain.ids import fresh_id
from infaas.errors import InvalidError, UnavailableError
from infaas.observe.log import configure_logging, get_logger
from infaas.repository.base import Repository, open_repository
from infaas.rpc.codec import decode
from infaas.rpc.tls import Tls, open_tls
from infaas.settings import Settings
from infaas.store.base import CursorLostError, Kind, Lease, MetadataStore, Record
from infaas.tokens import Tokens, cluster_tokens
from infaas.up import pulse
from infaas.up.probe import GENERATOR
from infaas_variant_generator.build import Build
from infaas_variant_generator.cores import CoreBroker
from infaas_variant_generator.facts import HardwareFacts
from infaas_variant_generator.hardware import recipe_features
from infaas_variant_generator.measuring import BuildSettings
from infaas_variant_generator.pace import HostPace
from infaas_variant_generator.publish import WHOLE, LeaseLostError, Publisher, result_key
from infaas_variant_generator.remeasure import Profiling

_log = get_logger(__name__)
RETRY_FIRST_S = 0.5
RETRY_MOST_S = 30.0
RELEASE_TIMEOUT_S = 2.0
RENEWALS_PER_LEASE = 4
MIN_ADDRESS_SPACE = 8 * 2**30
"""Mapped libraries and thread stacks take address space without taking memory."""
_WORK_PREFIX = "infaas-generator-"


class Generator:
    """One build at a time. `run` ends only by cancellation, and leaves no child and no lease behind."""

    def __init__(
        self,
        store: MetadataStore,
        repository: Repository,
        settings: Settings,
        *,
        tokens: Tokens,
        tls: Tls | None = None,
        clock: Clock | None = None,
        host: str | None = None,
        cores: frozenset[int] | None = None,
    ) -> None:
        """`tokens` and `tls`: what it shows to workers."""
        self._store = store
        self._repository = repository
        self._settings = settings
        self._tokens = tokens
        self._tls = tls
        self._clock: Clock = clock or SystemClock()
        self._host = host or socket.gethostname()
        self._cores = tuple(sorted(cores or machine.allowed_cores()))
        self.id = fresh_id("g")
        self._pace = HostPace(self._clock)
        self._wake = asyncio.Event()
        self._building: tuple[str, asyncio.Task[object]] | None = None
        self._not_before: dict[str, float] = {}
        self._failures: dict[str, int] = {}

    async def run(self) -> None:
        remove_stale_work(Path(tempfile.gettempdir()))
        _log.info("generator started", generator=self.id, host=self._host, cores=len(self._cores))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="generator: follow builds")
            group.create_task(self._serve(), name="generator: build")

    async def _serve(self) -> None:
        while True:
            self._wake.clear()
            if not await self._pass():
                await self._wait(self._settings.generator.lease_ttl_s / 2)

    async def _pass(self) -> bool:
        """Try every open order once; whether one was worked on."""
        try:
            orders = await self._open_orders()
        except UnavailableError as error:
            _log.warning("store away", reason=error.text)
            return False
        for order in orders:
            if self._clock.now() < self._not_before.get(order.id, float("-inf")):
                continue
            try:
                lease = await self._store.acquire(f"build/{order.id}", self.id, self._settings.generator.lease_ttl_s)
            except UnavailableError as error:
                _log.warning("store away", reason=error.text)
                return False
            if lease is not None:
                await self._build(order, lease)
                return True
        return False

    async def _open_orders(self) -> list[BuildOrder]:
        """Orders without a final result."""
        snapshot = await self._store.list([Kind.BUILD, Kind.RESULT])
        keys = {record.key for record in snapshot.records if record.kind is Kind.RESULT}
        orders = [order for record in snapshot.records if (order := _order(record)) is not None]
        return [order for order in orders if result_key(order.id, WHOLE) not in keys]

    async def _build(self, order: BuildOrder, lease: Lease) -> None:
        """Run a build while its lease is kept up; whatever ends it, its lease is released."""
        work_dir = Path(tempfile.mkdtemp(prefix=f"{_WORK_PREFIX}{os.getpid()}-"))
        broker = CoreBroker(self._store, self._host, self._cores, self._clock, self.id, self._tokens, self._tls)
        publisher = Publisher(self._store, order, lease, self._clock)
        tasks: list[asyncio.Task[object]] = []
        try:
            settings = await self._build_settings(work_dir, broker)
            work = self._work(order, settings, publisher, broker)
            _log.info("build started", build=order.id, generator=self.id, fence=lease.fence)
            running = asyncio.create_task(self._run(order, work), name=f"build {order.id}")
            keeping = asyncio.create_task(self._keep(lease), name=f"lease of {order.id}")
            tasks += [running, keeping]
            self._building = (order.id, running)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                _log.warning("build lost", build=order.id, reason="its lease could not be kept")
        finally:
            self._building = None
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
                await broker.close()
            finally:  # also when we are cancelled only now, after the build was done
                await self._release(lease)
            await asyncio.to_thread(shutil.rmtree, work_dir, True)

    def _work(
        self, order: BuildOrder, settings: BuildSettings, publisher: Publisher, broker: CoreBroker
    ) -> Build | Profiling:
        parts = (settings, publisher, self._repository, broker, self._clock)
        return Build(order, *parts) if order.remeasure is None else Profiling(order, order.remeasure, *parts)

    async def _run(self, order: BuildOrder, work: Build | Profiling) -> None:
        """Run to the end; a failure that a later try can mend postpones the order, with growing patience."""
        try:
            result = await work.run()
        except LeaseLostError as error:
            _log.warning("build lost", build=order.id, reason=str(error))
        except UnavailableError as error:
            self._postpone(order, error.text)
        except Exception as error:
            self._postpone(order, f"{type(error).__name__}: {error}")
            _log.error("build broke off", build=order.id, exc_info=error)
        else:
            self._failures.pop(order.id, None)
            self._not_before.pop(order.id, None)
            _log.info("build finished", build=order.id, outcome=result.outcome, reason=result.reason)

    def _postpone(self, order: BuildOrder, reason: str) -> None:
        failures = self._failures[order.id] = self._failures.get(order.id, 0) + 1
        wait_s = min(RETRY_MOST_S, RETRY_FIRST_S * 2 ** min(failures - 1, 16))
        self._not_before[order.id] = self._clock.now() + wait_s
        _log.warning("build postponed", build=order.id, reason=reason, seconds=wait_s)

    async def _build_settings(self, work_dir: Path, broker: CoreBroker) -> BuildSettings:
        """The hardware that variants are made for: what the workers of this machine have, else what we may use."""
        workers = await broker.workers()
        cores = min(len(self._cores), max((worker.cores for worker in workers), default=len(self._cores)))
        memory = max((worker.memory_bytes for worker in workers), default=machine.usable_memory_bytes())
        return BuildSettings(
            hardware=HardwareFacts(cores=max(1, cores), memory_bytes=memory, features=recipe_features()),
            host=self._host,
            price_usd_per_core_hour=price_usd_per_core_hour(self._settings),
            accuracy_tolerance=self._settings.generator.accuracy_tolerance,
            child_memory_bytes=max(machine.usable_memory_bytes(), MIN_ADDRESS_SPACE),
            work_dir=work_dir,
            pace=self._pace,
            triton_url=self._settings.worker.triton_url,
            is_triton_private=self._settings.worker.triton_private,
        )

    async def _keep(self, lease: Lease) -> None:
        """Renew until the lease is lost, or might be because the store has been away for its whole time."""
        kept_at = self._clock.now()
        while True:
            await asyncio.sleep(lease.ttl_s / RENEWALS_PER_LEASE)
            asked_at = self._clock.now()
            try:
                if not await self._store.renew(lease):
                    return
                kept_at = asked_at
            except UnavailableError:
                if self._clock.now() - kept_at >= lease.ttl_s:
                    return

    async def _release(self, lease: Lease) -> None:
        """Even while being cancelled; without it the next generator waits until the lease runs out."""
        release = asyncio.ensure_future(self._store.release(lease))
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await asyncio.shield(release)
        except asyncio.CancelledError:
            await asyncio.wait([release], timeout=RELEASE_TIMEOUT_S)
            raise
        except (UnavailableError, TimeoutError) as error:
            release.cancel()
            _log.warning("lease not released", lease=lease.name, reason=f"{type(error).__name__}: {error}")

    async def _follow(self) -> None:
        """Wake the loop when an order appears, and end the build whose order is withdrawn."""
        patience_s = RETRY_FIRST_S
        while True:
            try:
                snapshot = await self._store.list([Kind.BUILD])
                self._notice({r.key: r.value for r in snapshot.records}, is_complete=True)
                async for changes in self._store.watch(snapshot.cursor, snapshot.epoch):
                    patience_s = RETRY_FIRST_S
                    builds = {c.key: c.value for c in changes if c.kind is Kind.BUILD}
                    self._notice(builds, is_complete=False)
                return  # the store was closed
            except CursorLostError as error:
                _log.info("builds are listed again", reason=str(error))
            except UnavailableError as error:
                _log.warning("store away", reason=error.text, seconds=patience_s)
            await asyncio.sleep(patience_s)
            patience_s = min(RETRY_MOST_S, patience_s * 2)

    def _notice(self, builds: Mapping[str, bytes | None], *, is_complete: bool) -> None:
        """A complete listing of a store that was emptied withdraws nothing: absence there means unknown."""
        if not builds:
            return
        self._wake.set()
        if is_complete or self._building is None:
            return
        build, task = self._building
        if build in builds and builds[build] is None:
            _log.info("build withdrawn", build=build)
            task.cancel()

    async def _wait(self, timeout_s: float) -> None:
        """For an order to change, a postponed one to be due, or the timeout."""
        now = self._clock.now()
        due = [at - now for at in self._not_before.values() if at > now]
        with suppress(TimeoutError):
            async with asyncio.timeout(min([timeout_s, *due])):
                await self._wake.wait()


def price_usd_per_core_hour(settings: Settings) -> float:
    """Of the worker's own pool if it is configured, else of the first pool."""
    pools = settings.pools
    pool = pools.get(settings.worker.pool) or next(iter(pools.values()), None)
    return pool.price_usd_per_hour if pool else 0.0


def remove_stale_work(folder: Path) -> None:
    """What generators that were killed left behind: folders that carry the number of a process that is no more."""
    for path in folder.glob(f"{_WORK_PREFIX}*"):
        number = path.name.removeprefix(_WORK_PREFIX).split("-")[0]
        if number.isdigit() and not Path(f"/proc/{number}").exists():
            shutil.rmtree(path, ignore_errors=True)


def _order(record: Record) -> BuildOrder | None:
    """None for another kind, and for an order of a newer form than we can read (which is logged)."""
    if record.kind is not Kind.BUILD:
        return None
    try:
        return decode(record.value, BuildOrder)
    except InvalidError as error:
        _log.error("order not understood", build=record.key, reason=error.text)
        return None


def main(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    configure_logging(settings.log, component="generator")
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    from infaas.store.opening import open_store

    tokens, tls = cluster_tokens(settings), open_tls(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    store = open_store(settings)
    heart = pulse.Heart(settings.state_dir, GENERATOR)
    beating = asyncio.create_task(every(pulse.EVERY_S, heart.beat, name="sign of life"), name="generator: sign of life")
    try:
        repository = await asyncio.to_thread(open_repository, settings.repository_url)
        running = asyncio.create_task(
            Generator(store, repository, settings, tokens=tokens, tls=tls).run(), name="generator"
        )
        stopping = asyncio.create_task(stop.wait(), name="generator: stop signal")
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        running.cancel()
        results = await asyncio.gather(running, stopping, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        heart.stop()
        await store.close()
        _log.info("generator stopped")
