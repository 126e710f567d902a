"""INFaaS as it is shipped: `infaas up` on the servers' core, with models of others beside the ones that are measured.

An edition is that system with some settings, the way its users set them; the plain one has none. Before anything is
measured a query is looked at: it must carry what every answer carries, and leave its decision and its count behind.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
from own_system import BUILT_WITHIN_S, own_state, register

from dataplane.graphs import INPUT, Prepared
from dataplane.servers import INFAAS, LeftOut, Pins, Server
from infaas.bench.rest import query_bytes
from infaas.cli.target import endpoints_of
from infaas.client import Client
from infaas.demo import family
from infaas.errors import SettingsError
from infaas.settings import ENV_PREFIX, load_settings
from infaas.up.record import read_up

LEAST_VARIANTS = 20
ANSWER_HEADERS = (
    "x-request-id", "x-infaas-decision-id", "x-infaas-variant", "x-infaas-worker", "x-infaas-slo-met",
    "x-infaas-attempts", "x-infaas-queue-ms", "server-timing",
)  # fmt: skip
"""What docs/surface.md promises of every answer."""
_COUNTED = "infaas_requests_total"
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Edition:
    name: str
    settings: Mapping[str, str]
    """As the configuration names them: `worker.inline` for one."""

    def environ(self) -> dict[str, str]:
        return {ENV_PREFIX + key.upper().replace(".", "__"): value for key, value in self.settings.items()}

    def with_settings(self, more: Mapping[str, str]) -> Edition:
        return Edition(self.name, {**more, **self.settings})


PLAIN = Edition(INFAAS, {})
INLINE = Edition(f"{INFAAS}, inline worker", {"worker.inline": "true"})


@dataclass(frozen=True, slots=True)
class Shipped:
    """What one query of a system that is measured was seen to have; part of a run's data."""

    system: str
    settings: Mapping[str, str]
    variants: int
    """Registered, of all tasks."""
    headers: tuple[str, ...]
    decision: str
    counted: float
    """What its coming added to the count of queries."""


class System:
    """One edition that is up. It serves any number of models, one after the other or together."""

    def __init__(self, edition: Edition, client: Client, state_dir: Path) -> None:
        self._edition = edition
        self._client = client
        self._state_dir = state_dir
        self._served: dict[str, Server] = {}
        self.shipped: list[Shipped] = []

    @property
    def name(self) -> str:
        return self._edition.name

    def serve(self, prepared: Prepared) -> Server:
        """A task named like the model, served by its fp32 variant of one thread: what the peers run. The others are
        disabled, so that ratios compare systems and not precisions. Raises SystemExit when that cannot be had."""
        name = prepared.model.name
        if name not in self._served:
            _registered(self._client, prepared)
            endpoints, record = endpoints_of(self._state_dir), read_up(self._state_dir)
            if endpoints is None or record is None:
                raise SystemExit("the private system is gone")
            roots = {"supervisor": record.pid, **{one.name: one.pid for one in record.programs if one.pid is not None}}
            rest, grpc = (endpoints.host, endpoints.http_port), (endpoints.host, endpoints.grpc_port)
            self._served[name] = Server(self.name, rest, roots, grpc=grpc, is_own=True)
            self.shipped.append(self._look(prepared))
        return self._served[name]

    def crowd(self, least: int) -> None:
        """The demo's family, as often as it takes for so many variants."""
        times = 0
        while len(self._client.variants()) < least:
            register(self._client, [model.name for model in family.FAMILY], suffix=f"-{times}" if times else "")
            times += 1

    def _look(self, prepared: Prepared) -> Shipped:
        """Raises SystemExit when something that is shipped is missing."""
        query = query_bytes(prepared.model.name, {INPUT: prepared.questions[0][np.newaxis]}, {})
        head, _, body = query.partition(b"\r\n\r\n")
        lines = (line.partition(": ") for line in head.decode().split("\r\n")[1:])
        url = f"{self._client.url}/v2/models/{prepared.model.name}/infer"
        before = self._counted()
        answer = httpx.post(url, content=body, headers={name: value for name, _, value in lines}, timeout=30.0)
        if missing := [name for name in ANSWER_HEADERS if name not in answer.headers]:
            absent = ", ".join(missing)
            raise SystemExit(f"{self.name} answers {answer.status_code} without {absent}: {answer.text[:200]}")
        decision = self._client.decision(answer.headers["x-infaas-decision-id"])
        counted = self._counted() - before
        if counted != 1:
            raise SystemExit(f"{self.name} counts one query as {counted:g} ({_COUNTED})")
        return Shipped(
            self.name, self._edition.settings, len(self._client.variants()), ANSWER_HEADERS, decision.id, counted
        )

    def _counted(self) -> float:
        endpoints = endpoints_of(self._state_dir)
        return queries_counted("" if endpoints is None else httpx.get(endpoints.metrics_url, timeout=30.0).text)


def queries_counted(exposition: str) -> float:
    """Of all handles, however they ended, since the system came up."""
    return sum(float(line.rpartition(" ")[2]) for line in exposition.splitlines() if line.startswith(_COUNTED))


@contextmanager
def systems(
    wanted: Sequence[Edition], pins: Pins, *, budget_s: float, variants: int
) -> Iterator[tuple[list[System], list[LeftOut]]]:
    """Those editions, all up on the servers' core; those whose settings this version does not have are said."""
    up: list[System] = []
    missing: list[LeftOut] = []
    with ExitStack() as stack:
        for edition in wanted:
            environ = edition.environ()
            try:
                load_settings(environ=environ)
            except SettingsError as error:
                if edition.name == PLAIN.name:
                    raise SystemExit(str(error)) from error
                missing.append(LeftOut(edition.name, str(error)))
                continue
            with pins.for_server():
                client, state_dir = stack.enter_context(own_state(budget_s=budget_s, settings=environ))
                system = System(edition, client, state_dir)
                system.crowd(variants)
            up.append(system)
        yield up, missing


def editions(settings: Mapping[str, str]) -> list[Edition]:
    """As it comes, and with the worker inside the controller, with these settings besides their own."""
    return [edition.with_settings(settings) for edition in (PLAIN, INLINE)]


def seen(up: Sequence[System]) -> list[dict[str, object]]:
    """What was found of the systems, as data."""
    return [asdict(one) for system in up for one in system.shipped]


def _registered(client: Client, prepared: Prepared) -> None:
    """Raises SystemExit when the model cannot be built."""
    name = prepared.model.name
    made = client.register(prepared.file, task=name, name=f"{name}-net", evaluation=prepared.evaluation)
    deadline = time.monotonic() + BUILT_WITHIN_S
    while (version := client.version(f"{name}-net", made.version)).state != "READY":
        if version.state == "FAILED" or time.monotonic() > deadline:
            raise SystemExit(f"{name} is {version.state}: {version}")
        time.sleep(_LOOK_EVERY_S)
    variants = client.variants(task=name)
    kept = [one.name for one in variants if one.precision == "fp32" and one.threads == 1]
    if len(kept) != 1:
        raise SystemExit(f"{name} has no single fp32 variant of one thread: {[one.name for one in variants]}")
    for one in variants:
        if one.name not in kept:
            client.disable_variant(one.name)
    loaded = httpx.post(f"{client.url}/v2/repository/models/{kept[0]}/load", timeout=BUILT_WITHIN_S)
    if loaded.status_code != httpx.codes.OK:  # another one may have been warmed, and nobody has asked for this one yet
        raise SystemExit(f"{kept[0]} cannot be loaded: {loaded.text[:200]}")
    while client.variant(kept[0]).replicas < 1:
        if time.monotonic() > deadline:
            raise SystemExit(f"{kept[0]} is not loaded: {client.variant(kept[0])}")
        time.sleep(_LOOK_EVERY_S)
