"""What the container of an ordered worker is made of, and what an engine's answers say of it: from settings and an
order to the body that Docker's Engine API takes, and back. Nothing here speaks to an engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from infaas.errors import SettingsError
from infaas.observe.log import redact
from infaas.rpc.codec import decode, encode
from infaas.settings import ENV_PREFIX, STORE_VARIABLE, PoolSettings, Settings, without_password
from infaas.up.plan import EXTRA_STOP_S, overrides_environ
from infaas.up.quota import PERIOD_US
from infaas_controller.providers.base import MachineState, Order, ProviderError

CLUSTER_LABEL = "infaas.cluster"
ORDER_LABEL = "infaas.order"
LAST_S = 60.0
_LAST_LINES = 3
"""Of its log of the last so many seconds, that say why a worker has ended."""
_LONGEST_LINE = 300
_CLUSTER_TOKENS = ("CLUSTER_TOKEN", "CLUSTER_TOKEN_FILE")
_TOKENS = (*_CLUSTER_TOKENS, "TOKEN", "TOKEN_FILE")
_LEAST_QUOTA_US = 1_000
_NOT_FOR_WORKERS = frozenset(
    {"state_dir", "catalog", "repository", "controller", "worker", "generator", "pools", "fleet", "tasks"}
)
"""Sections that workers do not read, or are told in another way."""
_OWN_OF_EACH = frozenset({"id", "pool", "inline", "cores", "memory_bytes", "listen", "advertise"})
_OF_A_POOL = frozenset({"cores", "memory_bytes", "price_usd_per_hour"})
_STATES = {
    "created": MachineState.STARTING,
    "configured": MachineState.STARTING,
    "initialized": MachineState.STARTING,
    "removing": MachineState.ENDED,
    "exited": MachineState.ENDED,
    "stopped": MachineState.ENDED,
    "dead": MachineState.ENDED,
}
"""By the words of Docker's engine and of podman's; with any other there is a process."""


def container_name(id: str) -> str:
    """One of that name is there or not, whoever asks for it: that makes an order idempotent."""
    return f"infaas-{id}"


def cluster_mark(settings: Settings) -> str:
    """Whose containers these are. Who joins the same store on the same network is the same cluster; two clusters whose
    stores have the same name (two compose projects) have networks of their own."""
    own = settings.fleet.docker
    if own.cluster is not None:
        return own.cluster
    store = without_credentials(own.environment.get(STORE_VARIABLE) or settings.redis_url)
    return hashlib.sha256(f"{own.network or ''}\n{store}".encode()).hexdigest()[:16]


def without_credentials(url: str) -> str:
    """A password that is changed makes no other store."""
    scheme, separator, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{separator}{place.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def check(settings: Settings) -> None:
    """What only this provider needs. Raises SettingsError."""
    environment = settings.fleet.docker.environment
    if settings.cluster_token() is None and not any(f"{ENV_PREFIX}AUTH__{name}" in environment for name in _TOKENS):
        raise SettingsError(
            "fleet.provider is docker, whose workers listen on a network, where only callers with a credential may "
            "come in: set auth.cluster_token_file, or auth.token_file"
        )


def body(settings: Settings, order: Order) -> dict[str, Any]:
    """As `POST /containers/create` takes it. Raises ProviderError for a pool that is not known."""
    own, pool = settings.fleet.docker, settings.pools.get(order.pool)
    if pool is None:
        raise ProviderError(f"there is no pool {order.pool!r}")
    made: dict[str, Any] = {
        "Image": own.image,
        "Hostname": container_name(order.id),
        "Cmd": ["run", "worker"],
        "Env": [f"{name}={value}" for name, value in environ(settings, order, pool).items()],
        "Labels": {CLUSTER_LABEL: cluster_mark(settings), ORDER_LABEL: encode(order).decode()},
        "StopSignal": "SIGTERM",
        "StopTimeout": round(settings.worker.drain_timeout_s + EXTRA_STOP_S),
        "HostConfig": {
            # A process of the engine's is the first one: it passes SIGTERM on before the worker listens for it.
            "Init": True,
            "RestartPolicy": {"Name": "no"},
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Mounts": [_mount(volume) for volume in own.volumes],
            **_limits(pool, own.memory_headroom_bytes),
        },
    }
    if own.user is not None:
        made["User"] = own.user
    if own.network is not None:
        made["HostConfig"]["NetworkMode"] = own.network
    return made


def environ(settings: Settings, order: Order, pool: PoolSettings) -> dict[str, str]:
    """Variables of the worker: what controllers were told that is for workers too, what makes it this one, and what an
    operator says that it be told instead. Of what nobody has set the image's own counts. Raises ProviderError for a
    secret that cannot be read."""
    own = settings.fleet.docker
    sections = sorted(settings.model_fields_set - _NOT_FOR_WORKERS)
    told: dict[str, Any] = {name: _told(getattr(settings, name)) for name in sections}
    names = (f"{ENV_PREFIX}AUTH__{name}" for name in _CLUSTER_TOKENS)
    if told.get("auth", {}).get("cluster_token") is not None or any(name in own.environment for name in names):
        told.get("auth", {}).pop("token", None)  # it is the callers', whom workers do not know
    told["pools"] = json.dumps({order.pool: pool.model_dump(mode="json", exclude_none=True, include=set(_OF_A_POOL))})
    told["worker"] = {name: value for name, value in _told(settings.worker).items() if name not in _OWN_OF_EACH} | {
        "id": order.worker,
        "pool": order.pool,
        "listen": f"0.0.0.0:{own.port}",
        "advertise": f"auto:{own.port}",
    }
    if settings.repository.url is not None:
        told["repository"] = {"url": settings.repository.url}
    found = overrides_environ(told)
    return {name: value for name, value in found.items() if f"{name}_FILE" not in own.environment} | own.environment


def _told(section: BaseModel) -> dict[str, Any]:
    """What was set of it. A secret in a file is read: the worker may not have that file."""
    found: dict[str, Any] = {}
    for name in sorted(section.model_fields_set):
        value, secret = getattr(section, name), name.removesuffix("_file")
        if isinstance(value, BaseModel):
            found[name] = _told(value)
        elif isinstance(value, SecretStr):
            found[name] = value.get_secret_value()
        elif isinstance(value, Path) and secret != name and secret in type(section).model_fields:
            if found.get(secret) is None:  # it comes first by name, and counts
                found[secret] = _read(value)
        else:
            found[name] = str(value) if isinstance(value, Path) else value
    return found


def _read(secret: Path) -> str:
    try:
        return secret.read_text().strip()
    except OSError as error:
        raise ProviderError(f"a secret that workers are to be told cannot be read: {error}") from error


def order_of(labels: Mapping[str, str]) -> Order:
    """Raises InvalidError for a label that is not to be read."""
    return decode(labels.get(ORDER_LABEL, ""), Order)


def state_of(word: str) -> MachineState:
    return _STATES.get(word.lower(), MachineState.RUNNING)


def is_begun(word: str) -> bool:
    return state_of(word) is not MachineState.STARTING


def finished_at(state: Mapping[str, Any]) -> float:
    """Seconds since the epoch; 0 when the engine does not say."""
    try:
        return max(0.0, datetime.fromisoformat(str(state.get("FinishedAt"))).timestamp())
    except ValueError:
        return 0.0


def last_words(state: Mapping[str, Any], log: bytes) -> str:
    """Of a container that has ended: how, and what it said last, for its log goes with it. `state` is of
    `GET /containers/ID/json`."""
    words = [f"exit code {state.get('ExitCode', 'unknown')}"]
    if state.get("OOMKilled"):
        words.append("out of memory: it used more than its pool's memory_bytes and fleet.docker.memory_headroom_bytes")
    if state.get("Error"):
        words.append(str(state["Error"]))
    lines = [line.strip() for line in log.decode(errors="replace").splitlines() if line.strip()][-_LAST_LINES:]
    if lines:
        words.append("its log ends with: " + " | ".join(line[:_LONGEST_LINE] for line in lines))
    return str(redact("; ".join(words)))


def runs_as_root(settings: Settings, image: Mapping[str, Any]) -> bool:
    """`image` is of `GET /images/NAME/json`."""
    user = settings.fleet.docker.user or str((image.get("Config") or {}).get("User") or "")
    return user.partition(":")[0] in ("", "0", "root")


def shown_url(url: str) -> str:
    return without_password(url)


def _limits(pool: PoolSettings, headroom_bytes: int) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if pool.memory_bytes is not None:
        limits["Memory"] = pool.memory_bytes + headroom_bytes
    if pool.cpu_limit is not None:
        limits |= {"CpuPeriod": PERIOD_US, "CpuQuota": max(_LEAST_QUOTA_US, round(pool.cpu_limit * PERIOD_US))}
    return limits


def _mount(volume: str) -> dict[str, Any]:
    """Unlike `Binds`, a folder that is not there is an error, and is not made."""
    source, target, *mode = volume.split(":")
    kind = "bind" if source.startswith("/") else "volume"
    return {"Type": kind, "Source": source, "Target": target, "ReadOnly": mode == ["ro"]}


def names(summary: Mapping[str, Any]) -> Sequence[str]:
    """Of one entry of `GET /containers/json`, without the slash that the API puts before them."""
    return [str(name).lstrip("/") for name in summary.get("Names") or ()]
