"""Workers as containers of an engine that speaks Docker's API (Docker, podman). They outlive every controller.

An engine keeps no more of a container than its name and labels, which never change: the name makes an order idempotent,
the labels say what it was for and whose it is. When a container was first told to end is remembered by the controller
that told it; the next leader tells it again and counts from there.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from infaas.errors import InvalidError, SettingsError
from infaas.observe.log import get_logger
from infaas.settings import Settings
from infaas.up.plan import EXTRA_STOP_S
from infaas_controller.providers import docker_container as container
from infaas_controller.providers.base import Machine, MachineState, Order, ProviderError

DEFAULT_URL = "unix:///var/run/docker.sock"
CALL_TIMEOUT_S = 20.0
"""For one call of the engine; none of ours waits for a worker."""
TELL_AGAIN_S = 2.0
"""A signal may come before anybody listens."""
_CONFLICT = 409
Found = TypeVar("Found")
_log = get_logger(__name__)


class DockerProvider:
    """Controllers of one cluster must be told the same of `fleet.docker`."""

    name = "docker"

    def __init__(self, settings: Settings) -> None:
        """Nothing is asked of the engine yet. Raises SettingsError for settings that no worker could live with, and
        where the extra is not installed."""
        try:
            import docker
        except ImportError as error:
            raise SettingsError(
                f"fleet.provider is docker, but {error.name or 'docker'} is not installed; "
                "`pip install 'infaas[docker]'` brings it"
            ) from error
        container.check(settings)
        self._docker = docker
        self._settings = settings
        self._url = settings.fleet.docker.url or os.environ.get("DOCKER_HOST") or DEFAULT_URL
        self._mark = container.cluster_mark(settings)
        self._patience_s = settings.worker.drain_timeout_s + EXTRA_STOP_S
        self._client: Any = None
        self._told: dict[str, tuple[float, float]] = {}
        """When each was told to end: first, and last."""
        self._lock = threading.Lock()
        """Of all above: one call of the engine at a time."""

    async def list(self) -> Sequence[Machine]:
        return await self._asked(self._machines)

    async def create(self, order: Order) -> None:
        await self._asked(lambda engine: self._make(engine, order))

    async def remove(self, id: str) -> bool:
        return await self._asked(lambda engine: self._end(engine, id))

    # -- what is done in a thread, with the lock

    def _machines(self, engine: Any) -> Sequence[Machine]:
        found = engine.containers(all=True, filters={"label": [f"{container.CLUSTER_LABEL}={self._mark}"]})
        machines = [self._machine(engine, one) for one in found]
        return [machine for machine in machines if machine is not None]

    def _machine(self, engine: Any, summary: Mapping[str, Any]) -> Machine | None:
        """None: its label is another version's, or it is gone meanwhile."""
        try:
            order = container.order_of(summary.get("Labels") or {})
        except InvalidError as error:
            _log.warning("not a worker of ours; it is left alone", names=container.names(summary), reason=error.text)
            return None
        state = container.state_of(str(summary.get("State", "")))
        if state is not MachineState.ENDED:
            return Machine(order, state)
        said = self._last_words(engine, str(summary["Id"]))
        return None if said is None else Machine(order, state, said)

    def _last_words(self, engine: Any, id: str) -> str | None:
        try:
            state = engine.inspect_container(id).get("State") or {}
        except self._docker.errors.NotFound:
            return None
        since = max(1, int(container.finished_at(state) - container.LAST_S))
        try:
            log = engine.logs(id, since=since)  # podman may lose a line that it was asked for by `tail`
        except self._docker.errors.APIError:  # some of an engine's ways to log cannot be read back
            log = b""
        return container.last_words(state, log)

    def _make(self, engine: Any, order: Order) -> None:
        name = container.container_name(order.id)
        found = self._own(engine, name)
        if found is None:
            body = container.body(self._settings, order)
            self._check_image(engine)
            try:
                made = engine.create_container_from_config(body, name)
            except self._docker.errors.APIError:
                if self._own(engine, name) is None:  # else another controller was faster; engines say so differently
                    raise
                return
            engine.start(made["Id"])
        elif not container.is_begun(str(found["State"]["Status"])):
            engine.start(found["Id"])

    def _check_image(self, engine: Any) -> None:
        """The engine's own words name what it lacks, and not what to do about it."""
        image = self._settings.fleet.docker.image
        try:
            found = engine.inspect_image(image)
        except self._docker.errors.NotFound as error:
            raise ProviderError(
                f"there is no image {image!r} at {container.shown_url(self._url)}: pull it there, or build it from "
                "deploy/Dockerfile, or name another one in fleet.docker.image"
            ) from error
        if container.runs_as_root(self._settings, found):
            raise ProviderError(
                f"image {image!r} runs as root, which no worker needs: set fleet.docker.user to another user"
            )

    def _own(self, engine: Any, name: str) -> Mapping[str, Any] | None:
        """None: there is none of that name. Raises ProviderError for one that is somebody else's."""
        try:
            found: Mapping[str, Any] = engine.inspect_container(name)
        except self._docker.errors.NotFound:
            return None
        labels = (found.get("Config") or {}).get("Labels") or {}
        if labels.get(container.CLUSTER_LABEL) != self._mark:
            raise ProviderError(f"container {name} is not this cluster's ({self._mark!r}): it is left alone")
        return found

    def _end(self, engine: Any, id: str) -> bool:
        found = self._own(engine, container.container_name(id))
        if found is None:
            self._told.pop(id, None)
            return True
        status = str(found["State"]["Status"])
        try:
            if container.state_of(status) is MachineState.RUNNING:
                self._tell(engine, id, found["Id"])
                return False
            engine.remove_container(found["Id"], v=True, force=status == "dead")
        except self._docker.errors.NotFound:
            pass
        except self._docker.errors.APIError as error:
            if error.status_code != _CONFLICT:
                raise
            return False  # it runs again, ends, or is being removed: seen at the next call
        self._told.pop(id, None)
        return True

    def _tell(self, engine: Any, id: str, running: str) -> None:
        """To end; now and then again; by force in the end. Raises as the engine's calls do."""
        now = time.monotonic()
        first, last = self._told.get(id, (now, float("-inf")))
        if now - first >= self._patience_s:
            self._kill(engine, running)
        elif now - last >= TELL_AGAIN_S:
            self._told[id] = (first, now)
            self._terminate(engine, running)

    def _terminate(self, engine: Any, running: str) -> None:
        try:
            engine.kill(running, "SIGTERM")
        except self._docker.errors.APIError:
            # It has ended meanwhile, or it is paused, when some engines pass no signals on: its time runs all the same.
            if engine.inspect_container(running)["State"]["Status"] == "running":
                raise

    def _kill(self, engine: Any, running: str) -> None:
        try:
            engine.kill(running, "SIGKILL")
        except self._docker.errors.APIError:
            engine.remove_container(running, v=True, force=True)  # as above

    # -- the engine

    async def _asked(self, work: Callable[[Any], Found]) -> Found:
        return await asyncio.to_thread(self._ask, work)

    def _ask(self, work: Callable[[Any], Found]) -> Found:
        with self._lock:
            try:
                return work(self._connected())
            except self._docker.errors.APIError as error:
                raise ProviderError(f"the engine refuses: {error.explanation or error}") from error
            except (self._docker.errors.DockerException, OSError) as error:
                raise ProviderError(
                    f"the engine at {container.shown_url(self._url)} cannot be reached: {error}"
                ) from error

    def _connected(self) -> Any:
        """The first time it is asked which version of the API it speaks."""
        if self._client is None:
            told = self._docker.utils.kwargs_from_env({**os.environ, "DOCKER_HOST": self._url})
            self._client = self._docker.APIClient(**told, timeout=CALL_TIMEOUT_S)
        return self._client
