"""All settings: one YAML file, `INFAAS_*` variables over it, flags over both. An unknown key is an error.

A nested key becomes a variable with two underscores: `store.redis_url` is `INFAAS_STORE__REDIS_URL`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from infaas.errors import SettingsError

ENV_PREFIX = "INFAAS_"
ENV_NOT_SETTINGS = frozenset(
    {
        "INFAAS_CONFIG",
        "INFAAS_URL",
        "INFAAS_REDIS_SERVER",
        "INFAAS_TOKEN",
        "INFAAS_SUPERVISOR_PID",
        "INFAAS_GUARDIAN_PID",
        "INFAAS_SEAT",
    }
)
"""Variables that the programs read themselves; `INFAAS_TEST_*` belongs to the tests."""
_URL_PASSWORD = re.compile(r"(://[^\s/:@]*:)\S+@")
_URL_PARAMETER = re.compile(r"([?&](?:password|sslpassword)=)[^&\s'\"]+", re.IGNORECASE)
_MISSPELT_PASSWORD = re.compile(r"((?:^|[/\s'\"])[^\s/:@'\"]+:)(?!/)[^\s@]+@(?!sha\d+:)")
"""As it stands in what was meant to be a URL, and not in an image's name with its digest."""
_SECRET_NAMES = frozenset({"token", "password", "secret", "key"})
"""Last words of the names of secrets."""
HIDDEN = "[hidden]"
STORE_VARIABLE = "INFAAS_STORE__REDIS_URL"
_VOLUME = re.compile(r"(?:/[^:]*|[A-Za-z0-9][A-Za-z0-9_.-]*):/[^:]*(?::ro|:rw)?")
_OF_EACH_WORKER = frozenset(
    {f"{ENV_PREFIX}WORKER__{name}" for name in ("ID", "POOL", "LISTEN", "ADVERTISE", "INLINE", "CORES", "MEMORY_BYTES")}
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class StoreSettings(_Section):
    redis_url: str | None = Field(
        None,
        description="Live metadata, `redis://USER@HOST:PORT/0`, `rediss://` for TLS; empty: a private Redis started by "
        "`infaas up`",
    )
    password: SecretStr | None = Field(None, description="For Redis, when it is not in the URL")
    password_file: Path | None = Field(
        None, description="File that holds the password for Redis; read again for each new connection"
    )
    ca_file: Path | None = Field(
        None, description="Whom a `rediss://` server's certificate must be signed by; empty: whom the system trusts"
    )

    @model_validator(mode="after")
    def _there_is_a_server(self) -> Self:
        url = self.redis_url or ""
        if (self.password is not None or self.password_file is not None) and not url:
            raise ValueError("store.password needs store.redis_url: the private Redis has a socket of its own instead")
        if self.ca_file is not None and not url.startswith("rediss://"):
            raise ValueError(f"store.ca_file needs a rediss:// URL in store.redis_url (got {without_password(url)!r})")
        return self


class CatalogSettings(_Section):
    database_url: str | None = Field(
        None, description="`sqlite:///FILE` or `postgresql://USER@HOST/DATABASE`; empty: SQLite in the state folder"
    )
    password: SecretStr | None = Field(None, description="Of the database's user, when it is not in the URL")
    password_file: Path | None = Field(None, description="File that holds the password of the database's user")


class RepositorySettings(_Section):
    url: str | None = Field(None, description="Folder of artifacts; empty: `artifacts` in the state folder")
    collect: bool | None = Field(
        None,
        description="Delete artifacts that nothing names, where no other catalogue ever left its mark; empty: only in "
        "the state folder, and only if that held none before this catalogue used it",
    )
    collect_after_s: float = Field(86_400.0, ge=3600, description="For how long an artifact may go unnamed")


class ControllerSettings(_Section):
    host: str = Field("127.0.0.1", description="Address to bind; anything but loopback needs auth.token")
    http_port: int = Field(8000, ge=0, le=65535, description="REST; 0 picks a free port")
    grpc_port: int = Field(8001, ge=0, le=65535)
    metrics_port: int = Field(8002, ge=0, le=65535)
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that share the three ports; each serves queries with a core of its own. What is limited "
        "per controller is shared out evenly",
    )
    advertise: str | None = Field(
        None, description="URL at which other controllers reach this one's REST; empty: made from host and port"
    )
    policy: str = Field("slo", description="Selection policy, by entry point in the group infaas.policies")
    accuracy_confidence: Literal["point", "lower95"] = Field(
        "point", description="What an accuracy floor is held against"
    )
    max_queue_size: int = Field(10_000, ge=1, description="Items that may wait per task before queries are refused")
    max_queue_queries: int = Field(100_000, ge=1, description="Queries that may wait in all")
    max_queue_bytes: int = Field(2**30, ge=1024, description="Inputs of waiting queries, in all")
    min_replicas: int = Field(
        1,
        ge=1,
        description="Workers that every variant which serves is kept on, as far as free memory allows; with 2, losing "
        "a worker costs no cold start",
    )
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Largest query")
    max_json_bytes: int = Field(
        16 * 2**20, ge=1024, description="Largest JSON part of a REST query; larger tensors travel as binary data"
    )
    max_connections: int = Field(
        4096, ge=1, description="Open at one time on the REST and the metrics port each, and on the gRPC port"
    )
    read_timeout_s: float = Field(
        20.0, gt=0, description="For a REST request's header; a body has as long, and a second more per KiB that came"
    )
    max_upload_bytes: int = Field(2 * 2**30, ge=1024, description="Largest registration, all files together")
    decision_memory: int = Field(10_000, ge=1, description="Decisions kept for `explain`")
    journal_sample: float = Field(0.01, ge=0, le=1, description="Share of answered queries written to the journal")
    drain_timeout_s: float = Field(20.0, gt=0)
    worker_lost_after_s: float = Field(3.0, gt=0, description="Silence after which a worker is taken for lost")
    shared_memory_bytes: int = Field(
        64 * 2**20,
        ge=0,
        le=2**36,
        description="Shared with each worker of this machine and user, so that large inputs need not pass a socket; "
        "taken as it is needed. 0: nothing is shared, either way",
    )


class AutoscalingSettings(_Section):
    """A worker's model autoscaler. The last instance of a variant goes for want of use or of memory alone."""

    enabled: bool = Field(
        True,
        description="Load a busy variant again beside itself while cores are idle, and, told to a controller, on other "
        "workers with idle cores",
    )
    period_s: float = Field(1.0, ge=0.1, description="How often load is looked at")
    max_replicas: int = Field(8, ge=1, description="Instances of one variant on one worker")
    upscale_delay_s: float = Field(1.0, ge=0, description="How long a variant must be busy before it is loaded again")
    downscale_delay_s: float = Field(
        30.0, ge=0, description="How long one instance less must have been enough, and not less than a load takes"
    )
    downscale_to_zero_delay_s: float | None = Field(
        None, gt=0, description="Unload a variant that nobody has asked for in so long; empty: never"
    )
    exchange: bool = Field(
        False,
        description="Let another variant that the queries admit take over where it carries the load for clearly less "
        "of the worker's cores and memory (upgrade, downgrade)",
    )


class WorkerSettings(_Section):
    id: str | None = Field(None, description="Name of this worker; empty: made from pool and host")
    pool: str = "local"
    listen: str | None = Field(None, description="`unix:/path` or `host:port`; empty: a socket in the state folder")
    advertise: str | None = Field(
        None,
        description="What controllers dial, when it differs from `listen`; in `auto:PORT` with the address that the "
        "host's own name stands for",
    )
    inline: bool = Field(
        False,
        description="The worker lives in the controller's process, for tiny models: no hop between two processes. A "
        "model that crashes without isolation takes the controller along. Not with controller.processes above 1",
    )
    cores: int | None = Field(
        None, ge=1, description="Cores to use; empty: the pool's, else all that the process may use"
    )
    memory_bytes: int | None = Field(
        None, ge=2**20, description="Memory for instances; empty: the pool's, else half of it"
    )
    heartbeat_s: float = Field(1.0, gt=0)
    probe_interval_s: float = Field(15.0, gt=0, description="An idle instance proves itself this often")
    hang_after_s: float = Field(10.0, gt=0, description="No run is taken for hung before this")
    hang_factor: float = Field(20.0, ge=1, description="Nor before this many times its p99 by the profile")
    load_hang_after_s: float = Field(
        60.0,
        gt=0,
        description="No load is taken for hung before this, nor before `hang_factor` times its measured time",
    )
    drain_timeout_s: float = Field(20.0, gt=0)
    shared_memory_bytes: int = Field(
        64 * 2**20,
        ge=0,
        le=2**36,
        description="Shared with each controller of this machine and user, for large outputs; taken as it is needed. "
        "0: nothing is shared, either way",
    )
    triton_url: str | None = Field(
        None,
        pattern=r"^grpcs?://[^/@?#\s]+:\d{1,5}/?$",
        description="Triton server that attached models run on here, `grpc://HOST:PORT`, such as one beside each "
        "worker; empty: the server that each was attached from",
    )
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    triton_private: bool = Field(
        False,
        description="Nothing but this worker uses the server at `triton_url`: what the worker had it load, it unloads "
        "again. A server that others may use keeps what it has",
    )

    @model_validator(mode="after")
    def _private_is_named(self) -> Self:
        if self.triton_private and self.triton_url is None:
            raise ValueError("triton_private needs triton_url: the server that is this worker's own")
        return self


class GeneratorSettings(_Section):
    max_batch_size: int = Field(32, ge=1, le=4096, description="Largest batch a variant is made and measured for")
    profile_budget_s: float = Field(60.0, gt=0, description="Seconds of measuring per variant")
    accuracy_tolerance: float = Field(
        0.05, ge=0, le=1, description="Score a transformed variant may lose before it is refused"
    )
    lease_ttl_s: float = Field(10.0, gt=0)


class PoolSettings(_Section):
    """A kind of worker. `infaas up` starts `workers` of each pool; these stay. With a `fleet.provider` the fleet makes
    more and takes its own away again."""

    workers: int = Field(1, ge=0)
    min_workers: int = Field(0, ge=0, description="As many at least, in all; the fleet makes those that are missing")
    max_workers: int = Field(0, ge=0, description="As many at most, in all, for the fleet to make; 0: it makes none")
    startup_s: float = Field(10.0, gt=0, description="From ordering one until it is ready, as a rule")
    cores: int | None = Field(None, ge=1)
    memory_bytes: int | None = Field(None, ge=2**20)
    cpu_limit: float | None = Field(
        None,
        gt=0,
        description="Cores' worth of time that a worker gets which the fleet makes; `local` needs a control group for "
        "that, which its user may make. Empty: no limit",
    )
    price_usd_per_hour: float = Field(0.04, ge=0, description="Per core")


class DockerSettings(_Section):
    """Where and how the fleet's provider `docker` makes workers. The same for all controllers of a cluster."""

    url: str | None = Field(
        None,
        pattern=r"^(unix:///|tcp://|https?://)\S+$",
        description="Of the engine's API: `unix:///PATH` or `tcp://HOST:PORT`; empty: DOCKER_HOST, else "
        "`unix:///var/run/docker.sock`. DOCKER_TLS_VERIFY and DOCKER_CERT_PATH count as for Docker's own programs",
    )
    image: str = Field("infaas:local", min_length=1, description="That workers are made of; the engine must have it")
    network: str | None = Field(
        None,
        description="Of the engine, that workers join; controllers must reach its addresses. Empty: the engine's own",
    )
    volumes: list[str] = Field(
        default_factory=list,
        description="What workers see, artifacts among it: `SOURCE:/PATH` or `SOURCE:/PATH:ro` each, where SOURCE is a "
        "volume's name or a path on the engine's machine",
    )
    environment: dict[str, Annotated[str, Field(coerce_numbers_to_str=True)]] = Field(
        default_factory=dict,
        description="More variables for workers, over what they are told of these settings; such as "
        "INFAAS_STORE__REDIS_URL where a container reaches the store at another address",
    )
    user: str | None = Field(
        None, description="Whom workers run as, `UID` or `UID:GID`, not root; empty: whom the image names"
    )
    port: int = Field(9000, ge=1, le=65535, description="That each worker listens on, at an address of its own")
    memory_headroom_bytes: int = Field(
        512 * 2**20,
        ge=2**26,
        description="What a worker may use beyond its pool's memory_bytes, for itself; with both its container ends",
    )
    cluster: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="Tells this cluster's containers from those of others on the engine; empty: made from the network "
        "and the store's address. Not to be changed while there are any",
    )

    @field_validator("network")
    @classmethod
    def _is_one_of_their_own(cls, network: str | None) -> str | None:
        if network is not None and (network in ("host", "none") or network.startswith(("container:", "ns:"))):
            raise ValueError("each worker needs an address of its own: name a network of the engine")
        return network

    @field_validator("volumes")
    @classmethod
    def _say_what_and_where(cls, volumes: list[str]) -> list[str]:
        for volume in volumes:
            if not _VOLUME.fullmatch(volume):
                raise ValueError(
                    f"{volume!r} is not SOURCE:/PATH or SOURCE:/PATH:ro, with a volume's name or an absolute path for "
                    "SOURCE"
                )
        return volumes

    @field_validator("user")
    @classmethod
    def _is_not_root(cls, user: str | None) -> str | None:
        if user is not None and user.partition(":")[0] in ("", "0", "root"):
            raise ValueError("workers run models of others and need no rights: name a user that is not root")
        return user

    @field_validator("environment")
    @classmethod
    def _leaves_workers_themselves(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if name in _OF_EACH_WORKER:
                raise ValueError(f"{name} differs from worker to worker, and the provider says it: leave it out")
        return environment


class FleetSettings(_Section):
    """The VM autoscaler: how many workers of each pool there are, where a provider makes them."""

    provider: Literal["none", "local", "docker"] = Field(
        "none", description="`local`: processes of this machine; `docker`: containers (extra `docker`)"
    )
    dry_run: bool = Field(False, description="Say what would be done, and do nothing")
    period_s: float = Field(2.0, ge=0.1, description="How often the fleet is looked at")
    target_utilization: float = Field(
        0.7, gt=0, le=0.8, description="Share of its cores that a fleet of the right size has in use"
    )
    upscale_delay_s: float = Field(2.0, ge=0, description="How long cores must be short before workers are ordered")
    downscale_delay_s: float = Field(60.0, ge=0, description="How long fewer workers must have been enough")
    max_usd_per_hour: float | None = Field(
        None,
        ge=0,
        description="Budget that no order may exceed, of the workers of all pools with max_workers, drained ones "
        "too; empty: none",
    )
    folder: Path | None = Field(
        None,
        description="Where `local` keeps what it started; the same for all controllers, which are on one machine then. "
        "Empty: `fleet` in the state folder",
    )
    docker: DockerSettings = DockerSettings()


class TaskDefaultsSettings(_Section):
    slo_latency_ms: float | None = Field(None, gt=0)
    slo_accuracy_min: float | None = Field(None, ge=0, le=1)
    max_cost: float | None = Field(None, ge=0)
    objective: Literal["cost", "accuracy", "latency"] | None = None
    priority: Literal["critical", "standard", "sheddable"] | None = None
    fallback: bool | None = None
    policy: str | None = None


class TaskSettings(_Section):
    defaults: TaskDefaultsSettings = TaskDefaultsSettings()


class AuthSettings(_Section):
    token: SecretStr | None = Field(None, min_length=1, description="Bearer token that REST and gRPC callers must send")
    token_file: Path | None = Field(
        None,
        description="File that holds the token. With one per line all are accepted and the first is sent; read again "
        "when it changes",
    )
    cluster_token: SecretStr | None = Field(
        None, min_length=1, description="What workers expect of controllers and generators; empty: the callers' token"
    )
    cluster_token_file: Path | None = Field(None, description="File that holds it, as `token_file`")


class TlsSettings(_Section):
    """Between controllers, generators and workers that listen on TCP: each shows a certificate, and each checks the
    other's. All three files, or none. Read again when they change."""

    cert_file: Path | None = Field(None, description="This part's certificate, PEM, with what is between it and the CA")
    key_file: Path | None = Field(None, description="Its private key, PEM, not encrypted")
    ca_file: Path | None = Field(
        None, description="The cluster's own CA, PEM: every certificate that it signed may join, so it signs no others"
    )
    peer_name: str | None = Field(
        None,
        description="DNS name that the certificates of all workers carry; empty: each carries the host that is dialled",
    )

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        missing = [name for name in ("cert_file", "key_file", "ca_file") if getattr(self, name) is None]
        if missing and (len(missing) < 3 or self.peer_name is not None):
            raise ValueError(f"tls.{missing[0]} is not set: set tls.cert_file, tls.key_file and tls.ca_file, or none")
        return self


QueryLines = Literal["none", "notable", "all"]


class LogSettings(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"
    queries: QueryLines = Field(
        "notable",
        description="Which queries leave a line: `notable` (refused, failed, retried, by a fallback), `all`, `none`",
    )


class ObserveSettings(_Section):
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]+",
        description="OpenTelemetry collector (OTLP over HTTP), such as `http://localhost:4318`; needs the extra `otel`",
    )
    trace_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of traces that are recorded where a query came without trace context"
    )


def _default_state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "infaas"


class Settings(_Section):
    state_dir: Path = Field(default_factory=_default_state_dir, description="Sockets, SQLite, artifacts, logs")
    store: StoreSettings = StoreSettings()
    catalog: CatalogSettings = CatalogSettings()
    repository: RepositorySettings = RepositorySettings()
    controller: ControllerSettings = ControllerSettings()
    worker: WorkerSettings = WorkerSettings()
    generator: GeneratorSettings = GeneratorSettings()
    pools: dict[str, PoolSettings] = Field(default_factory=lambda: {"local": PoolSettings()})
    fleet: FleetSettings = FleetSettings()
    tasks: dict[str, TaskSettings] = Field(default_factory=dict)
    auth: AuthSettings = AuthSettings()
    tls: TlsSettings = TlsSettings()
    log: LogSettings = LogSettings()
    observe: ObserveSettings = ObserveSettings()

    @model_validator(mode="after")
    def _inline_is_in_one_process(self) -> Self:
        if self.worker.inline and self.controller.processes > 1:
            raise ValueError(
                f"worker.inline is true and controller.processes is {self.controller.processes}, but a worker lives in "
                "one process only: set worker.inline to false, or controller.processes to 1"
            )
        return self

    @model_validator(mode="after")
    def _spares_stay(self) -> Self:
        own = self.worker.autoscaling
        if own.enabled and own.downscale_to_zero_delay_s is not None and self.controller.min_replicas > 1:
            raise ValueError(
                f"controller.min_replicas is {self.controller.min_replicas}, which loads again what "
                f"worker.autoscaling.downscale_to_zero_delay_s unloads: leave one of them out"
            )
        if own.exchange and self.controller.min_replicas > 1:
            raise ValueError(
                f"controller.min_replicas is {self.controller.min_replicas}: variants that worker.autoscaling.exchange "
                f"replaces on a worker have no spare there; leave one of them out"
            )
        if own.exchange and not own.enabled:
            raise ValueError("worker.autoscaling.exchange needs worker.autoscaling.enabled: nothing is done without it")
        return self

    @model_validator(mode="after")
    def _pools_can_be_kept(self) -> Self:
        for name, pool in self.pools.items():
            if pool.max_workers and pool.min_workers > pool.max_workers:
                raise ValueError(
                    f"pools.{name}.min_workers is {pool.min_workers} and its max_workers {pool.max_workers}: "
                    "raise the second or lower the first"
                )
            if self.fleet.provider == "none" and (pool.min_workers or pool.max_workers):
                raise ValueError(
                    f"pools.{name} has min_workers or max_workers, which nobody keeps: set fleet.provider, or leave "
                    "them out (`workers` are what `infaas up` starts)"
                )
            if self.fleet.provider != "none" and pool.max_workers and pool.cores is None:
                raise ValueError(
                    f"pools.{name}.cores is not set: the fleet must know how many cores one of its workers has"
                )
            if self.fleet.provider != "none" and pool.min_workers and not pool.max_workers:
                raise ValueError(f"pools.{name}.min_workers is {pool.min_workers} and its max_workers 0: raise it")
        return self

    @model_validator(mode="after")
    def _containers_reach_the_store(self) -> Self:
        own = self.fleet
        if own.provider == "docker" and not self.store.redis_url and STORE_VARIABLE not in own.docker.environment:
            raise ValueError(
                "fleet.provider is docker, and workers in containers do not reach the private Redis of `infaas up`: "
                f"set store.redis_url (or {STORE_VARIABLE} in fleet.docker.environment)"
            )
        return self

    @property
    def fleet_folder(self) -> Path:
        return self.fleet.folder or self.state_dir / "fleet"

    @property
    def redis_url(self) -> str:
        return self.store.redis_url or f"unix://{self.state_dir}/redis.sock"

    @property
    def database_url(self) -> str:
        """With the password, wherever that was given. Raises SettingsError when it cannot be read or placed."""
        password = _secret("catalog.password", self.catalog.password, self.catalog.password_file)
        url = self.catalog.database_url or f"sqlite:///{self.state_dir}/catalog.db"
        return url if password is None else _with_password(url, password)

    @property
    def repository_url(self) -> str:
        return self.repository.url or str(self.state_dir / "artifacts")

    def token(self) -> str | None:
        """What callers send. Raises SettingsError when its file cannot be read or is empty."""
        return next(iter(read_tokens("auth.token", self.auth.token, self.auth.token_file)), None)

    def cluster_token(self) -> str | None:
        """What controllers and generators send to workers. Raises as `token` does."""
        own = read_tokens("auth.cluster_token", self.auth.cluster_token, self.auth.cluster_token_file)
        return own[0] if own else self.token()

    def require_secrets(self) -> None:
        """Raises SettingsError for a secret whose file cannot be read, or that has no place."""
        self.token()
        self.cluster_token()
        self.redis_password()
        _ = self.database_url

    def redis_password(self) -> str | None:
        """Where it is not in the URL. Raises SettingsError when it cannot be read, or is in the URL as well."""
        password = _secret("store.password", self.store.password, self.store.password_file)
        if password is not None and without_password(self.redis_url) != self.redis_url:
            raise SettingsError("store.redis_url has a password already; keep it, or store.password, but not both")
        return password

    def shown(self) -> dict[str, Any]:
        """Every setting as plain values for people, with no secret in them."""
        found: dict[str, Any] = _without_secrets(self.model_dump(mode="json"))
        return found


def load_settings(
    path: Path | None = None,
    *,
    environ: dict[str, str] | None = None,
    overrides: dict[str, Any] | None = None,
) -> Settings:
    """Read the file (or `INFAAS_CONFIG`, or none), lay variables and then `overrides` (nested dict) over it.

    Raises SettingsError with every problem found.
    """
    env = dict(os.environ) if environ is None else environ
    if path is None and env.get("INFAAS_CONFIG"):
        path = Path(env["INFAAS_CONFIG"])
    merged = _read_yaml(path) if path else {}
    _merge(merged, _from_environ(env))
    _merge(merged, overrides or {})
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        problems = [_describe(dict(e)) for e in error.errors()]
        raise SettingsError("; ".join(problems), problems=problems) from None


def json_schema() -> dict[str, Any]:
    """The published schema of `infaas.yaml`."""
    schema = Settings.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "infaas.yaml"
    return schema


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"configuration {str(path)!r} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"configuration {str(path)!r} is not UTF-8 text: {error.reason}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"configuration {str(path)!r} is not YAML: {_yaml_problem(error)}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise SettingsError(f"configuration {str(path)!r} must be a mapping of sections, not {type(loaded).__name__}")
    return loaded


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What and where, without the line itself: it may hold a secret."""
    problem = getattr(error, "problem", None) or type(error).__name__
    mark = getattr(error, "problem_mark", None)
    return f"{problem} in line {mark.line + 1}, column {mark.column + 1}" if mark else str(problem)


def _from_environ(env: dict[str, str]) -> dict[str, Any]:
    """Raises SettingsError naming every variable that cannot be understood."""
    nested: dict[str, Any] = {}
    problems: list[str] = []
    for name, text in sorted(env.items()):
        if not name.startswith(ENV_PREFIX) or name in ENV_NOT_SETTINGS or name.startswith("INFAAS_TEST_"):
            continue
        *sections, last = name[len(ENV_PREFIX) :].lower().split("__")
        here = nested
        for section in sections:
            here = here.setdefault(section, {}) if isinstance(here, dict) else here
        if not isinstance(here, dict) or last in here:
            problems.append(f"{name} sets a section that another INFAAS_* variable sets as well; keep one of them")
            continue
        try:
            here[last] = _variable_value(text, is_secret=sections[:1] == ["auth"] or _is_secret(last))
        except yaml.YAMLError as error:
            problems.append(f"{name} is not a value: {_yaml_problem(error)}")
    if problems:
        raise SettingsError("; ".join(problems), problems=problems)
    return nested


def _variable_value(text: str, *, is_secret: bool) -> Any:
    """Text stays text (the setting's own type reads it), so that an id or a token of digits is none the worse; lists
    and mappings are YAML; nothing at all unsets."""
    if not text:
        return None
    if not is_secret and text.lstrip()[:1] in ("{", "["):
        return yaml.safe_load(text)
    return None if text in ("null", "~") and not is_secret else text


def _merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _describe(error: dict[str, Any]) -> str:
    if not error["loc"]:  # of several sections together: the text names the values, of which the input is all
        return str(error["ctx"]["error"])
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown setting {where!r} (`infaas config show` lists the known ones)"
    if where.split(".")[0] == "auth" or _is_secret(where.split(".")[-1]):  # never echo a secret
        return f"setting {where!r}: {error['msg']}"
    if isinstance(error.get("input"), dict):  # a whole section, whose secrets are in it
        return f"setting {where!r}: {error['msg']}"
    return f"setting {where!r}: {error['msg']} (got {without_password(repr(_without_secrets(error.get('input'))))})"


def without_password(text: str) -> str:
    """A URL, or a text with one, with its password replaced."""
    hidden = _MISSPELT_PASSWORD.sub(rf"\1{HIDDEN}@", _URL_PASSWORD.sub(rf"\1{HIDDEN}@", text))
    return _URL_PARAMETER.sub(rf"\1{HIDDEN}", hidden)


def _is_secret(name: str) -> bool:
    """As `password` and `AWS_SECRET_ACCESS_KEY` are, and `password_file` is not."""
    return name.lower().rpartition("_")[2] in _SECRET_NAMES


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: HIDDEN if _is_secret(key) and inner else _without_secrets(inner) for key, inner in value.items()}
    return without_password(value) if isinstance(value, str) else value


def read_tokens(setting: str, value: SecretStr | None, file: Path | None) -> tuple[str, ...]:
    """From the setting, else one per line of the file; none where neither is set. Raises as `_secret` does."""
    text = _secret(setting, value, file)
    if text is None:
        return ()
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not found:
        raise SettingsError(f"{setting} is blank: set it to something, or leave it out")
    return found


def _secret(setting: str, value: SecretStr | None, file: Path | None) -> str | None:
    """From the setting, else from the file that `<setting>_file` names. Raises SettingsError, never with the secret."""
    if value is not None:
        return value.get_secret_value()
    if file is None:
        return None
    what = setting.rsplit(".", 1)[1].replace("_", " ")
    try:
        text = file.read_text().strip()
    except OSError as error:
        raise SettingsError(f"{setting}_file {str(file)!r} cannot be read: {error}") from error
    if not text:
        raise SettingsError(f"{setting}_file {str(file)!r} is empty; write the {what} into it")
    return text


def _with_password(url: str, password: str) -> str:
    scheme, separator, rest = url.partition("://")
    user, at, place = rest.partition("@")
    if not separator or not at or not user or "/" in user:
        raise SettingsError(
            "catalog.password needs a user in catalog.database_url: postgresql://USER@HOST/DATABASE "
            f"(got {without_password(url)!r})"
        )
    if ":" in user:
        raise SettingsError("catalog.database_url has a password already; keep it, or catalog.password, but not both")
    return f"{scheme}://{user}:{quote(password, safe='')}@{place}"
