"""A cluster with a secret in every place that takes one: it works, it fails in every way that has to do with them, and
none of them is found in what it says, shows, writes or is called with."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import psutil
import pytest

from infaas.client import Client
from infaas.demo import family
from infaas.errors import UnauthenticatedError
from infaas.testing.certificates import Authority
from infaas.testing.cluster import Cluster, wait_for
from infaas.testing.postgresql import PostgresServer

pytestmark = [pytest.mark.long, pytest.mark.timeout(500)]
MODEL = "digits-mlp"
INFAAS = Path(sys.executable).with_name("infaas")
CALLERS, LATER = "callers-t0ken-5ecret", "later-t0ken-5ecret"
PARTS = "cluster-t0ken-5ecret"
REDIS, OTHER_REDIS = "r3dis p@ss:w/rd-5ecret", "0ther-r3dis-5ecret"
WRONG = "wr0ng-g0ss1p-5ecret"
EXTRA_S = 6.0
"""Of a program that cannot reach what it needs and goes on trying."""


class GuardedCluster(Cluster):
    """Its workers listen on TCP and are let talk to with certificates and a token of their own; its Redis and its
    PostgreSQL ask for passwords; it says all that it can say."""

    def __init__(self, folder: Path, database: PostgresServer) -> None:
        self.secrets = folder / "secrets"
        self.secrets.mkdir()
        self.authority = Authority(self.secrets / "ca")
        self._is_guarded = False
        files = self.authority.issue("127.0.0.1", "localhost")
        for name, text in (("token", f"{CALLERS}\n{LATER}"), ("redis", REDIS), ("database", database.password)):
            (self.secrets / name).write_text(f"{text}\n")
        self.key = files.key.read_text().splitlines()
        settings = {
            "INFAAS_AUTH__TOKEN_FILE": str(self.secrets / "token"),
            "INFAAS_AUTH__CLUSTER_TOKEN": PARTS,
            "INFAAS_STORE__PASSWORD_FILE": str(self.secrets / "redis"),
            "INFAAS_CATALOG__PASSWORD_FILE": str(self.secrets / "database"),
            "INFAAS_TLS__CERT_FILE": str(files.cert),
            "INFAAS_TLS__KEY_FILE": str(files.key),
            "INFAAS_TLS__CA_FILE": str(files.ca),
            "INFAAS_LOG__LEVEL": "debug",
            "INFAAS_LOG__QUERIES": "all",
        }
        url = database.url(database.new_database(), with_password=False)
        super().__init__(folder, controllers=2, workers=2, database_url=url, settings=settings)
        self.told: dict[str, Mapping[str, str]] = {}

    def _start(self, name: str) -> None:
        common = self._environ
        listen = {} if "worker" not in name else {"INFAAS_WORKER__LISTEN": f"127.0.0.1:{free_port()}"}
        self._environ = {**common, **listen, **self.told.get(name, {})}
        try:
            super()._start(name)
        finally:
            self._environ = common

    def start_redis(self) -> None:
        self.redis_url = f"unix://{self.folder}/redis/redis.sock"
        super().start_redis()
        self.set_redis_password(REDIS)

    def set_redis_password(self, password: str) -> None:
        self.redis(("CONFIG", "SET", "requirepass", password), ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
        self.redis_url = f"unix://:{quote(password, safe='')}@{self.folder}/redis/redis.sock"

    def client(self, controller: int = 0) -> Client:
        return Client(self.url(self.controllers[controller]), CALLERS, timeout_s=60.0)

    def programs(self) -> Iterator[psutil.Process]:
        for process in self._processes.values():
            if process.poll() is None:
                own = psutil.Process(process.pid)
                yield from (own, *own.children(recursive=True))

    def alone(self, program: str, **variables: str) -> str:
        """What a program says that is started with these settings, until it ends or `EXTRA_S` are over."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        ports = {f"INFAAS_CONTROLLER__{name}_PORT": "0" for name in ("HTTP", "GRPC", "METRICS")}
        environ = {**self._environ, **ports, "INFAAS_STATE_DIR": str(folder), **variables}
        command = [sys.executable, "-m", "infaas.programs", program]
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            return process.communicate(timeout=EXTRA_S)[0]
        except subprocess.TimeoutExpired:
            process.terminate()
            return process.communicate()[0]

    def command(self, *words: str) -> str:
        """What `infaas` prints to somebody on the machine of the first controller."""
        own = {"INFAAS_STATE_DIR": str(self.folder / "controller-1"), "INFAAS_TOKEN": CALLERS}
        environ = {**self._environ, **own, "INFAAS_URL": self.urls()[0]}
        done = subprocess.run([INFAAS, *words], env=environ, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster(own_postgres_server: PostgresServer) -> Iterator[GuardedCluster]:
    with tempfile.TemporaryDirectory(prefix="infaas-", ignore_cleanup_errors=True) as folder:
        guarded = GuardedCluster(Path(folder), own_postgres_server)
        with guarded.running():
            yield guarded


def trouble_of(cluster: GuardedCluster, worker: str) -> str:
    with cluster.client() as client:
        return next((one.trouble for one in client.workers() if one.id == worker), "")


def use(cluster: GuardedCluster) -> list[str]:
    """Register, ask, and be refused; what was answered."""
    with np.load(family.path(family.EVAL_FILE), allow_pickle=False) as data:
        rows = {family.INPUT: np.asarray(data[family.INPUT][:1], dtype=np.float32)}
    cluster.register(MODEL)
    with cluster.client() as client:
        assert client.infer(MODEL, rows).version == "1"
    said = []
    first, metrics = cluster.url("controller-1"), cluster.metrics_url("controller-1")
    for url in (f"{first}/v1/system", f"{first}/v2/models/x/infer", metrics):
        answer = httpx.get(url, headers={"authorization": f"Bearer {WRONG}"})
        said.append(f"{answer.headers} {answer.text}")
    with Client(cluster.urls()[0], WRONG) as client, pytest.raises(UnauthenticatedError) as error:
        client.system()
    return [*said, str(error.value)]


def shown(cluster: GuardedCluster) -> list[str]:
    """By every page and command that shows how the cluster is."""
    found = []
    with httpx.Client(headers={"authorization": f"Bearer {CALLERS}"}, timeout=30.0) as client:
        pages = [f"{cluster.urls()[0]}/{page}" for page in ("v1/system", "v1/workers", "v1/decisions", "v2")]
        for page in (*pages, f"{cluster.metrics_url('controller-1')}/metrics"):
            answer = client.get(page)
            assert answer.status_code in (200, 503), page  # the latter where the catalogue is lost
            found.append(f"{answer.headers} {answer.text}")
    commands = (("config", "show"), ("config", "validate"), ("doctor",), ("status",), ("worker", "list"))
    return found + [cluster.command(*words) for words in commands]


def fail(cluster: GuardedCluster, database: PostgresServer) -> list[str]:
    """In the ways that have to do with secrets, and by a crash; what those said that did not stay."""
    stranger = Authority(cluster.secrets / "stranger").issue("127.0.0.1")
    lone = {f"INFAAS_TLS__{name}_FILE": str(getattr(stranger, name.lower())) for name in ("CERT", "KEY", "CA")}
    cluster.told = {"worker-8": {"INFAAS_AUTH__CLUSTER_TOKEN": WRONG}, "worker-9": lone}
    for name, reason in (("worker-8", "a wrong token came; set auth.cluster_token"), ("worker-9", "not accepted")):
        cluster.start(name)
        wait_for(lambda name=name, reason=reason: reason in trouble_of(cluster, name.replace("worker", "local")), name)
        assert reason in cluster.command("worker", "list")
        cluster.kill(name)

    (cluster.secrets / "token").write_text("")
    wait_for(lambda: has_said(cluster, "the tokens stay as they were"), "a lost token to be logged")
    (cluster.secrets / "token").write_text(f"{LATER}\n{CALLERS}\n")
    wait_for(lambda: has_said(cluster, "tokens changed"), "a changed token to be logged")

    said = []
    cluster.set_redis_password(OTHER_REDIS)
    wait_for(lambda: state(cluster, "store") == "lost", "the password of Redis to be missed")
    said += shown(cluster)
    cluster.set_redis_password(REDIS)
    cluster.wait_whole()

    database.kill()
    wait_for(lambda: state(cluster, "catalogue") == "lost", "PostgreSQL to be missed")
    said += shown(cluster)
    database.start()
    cluster.kill_redis()
    wait_for(lambda: state(cluster, "store") == "lost", "Redis to be missed")
    said += shown(cluster)
    cluster.start_redis()
    cluster.signal("worker-2", signal.SIGABRT)
    wait_for(lambda: cluster.has_ended("worker-2"), "a crash")
    cluster.start("worker-2")
    cluster.wait_whole()
    return said


def has_said(cluster: GuardedCluster, line: str) -> bool:
    """The first controller, which looks at its token when it is asked something."""
    return cluster.system() is not None and line in cluster.log("controller-1")


def state(cluster: GuardedCluster, part: str) -> str:
    found = cluster.system()
    return "" if found is None else getattr(found, part).state


def test_no_secret_is_said_shown_written_or_called_with(
    cluster: GuardedCluster, own_postgres_server: PostgresServer
) -> None:
    said = [*use(cluster), *shown(cluster)]
    said += [" ".join(process.cmdline()) for process in cluster.programs()]
    said += fail(cluster, own_postgres_server)
    unreachable = {
        "INFAAS_STORE__REDIS_URL": f"rediss://someone:{WRONG}@127.0.0.1:1/0",
        "INFAAS_STORE__PASSWORD_FILE": "",
        "INFAAS_CATALOG__DATABASE_URL": f"postgresql://someone:{WRONG}@127.0.0.1:1/x?password={WRONG}",
        "INFAAS_CATALOG__PASSWORD_FILE": "",
    }
    wrong = {"INFAAS_CATALOG__PASSWORD": WRONG, "INFAAS_STORE__PASSWORD": WRONG}
    unfit = {"INFAAS_STORE__REDIS_URL": f"reddis://:{WRONG}@h", "INFAAS_STORE__PASSWORD_FILE": ""}
    for variables in (unreachable, wrong, unfit, {"INFAAS_CATALOG__DATABASE_URL": f"postgresql//a:{WRONG}@h"}):
        for program in ("controller", "worker", "generator"):
            said.append(cluster.alone(program, **variables))
    assert sum("is not available" in one or "cannot" in one or "not a" in one for one in said) >= 6, "they did fail"

    kept = [path for path in cluster.folder.rglob("*") if path.is_file() and cluster.secrets not in path.parents]
    assert len(kept) > 10
    said += [path.read_bytes().decode("latin-1") for path in kept]
    password = own_postgres_server.password
    hidden = [CALLERS, LATER, PARTS, REDIS, OTHER_REDIS, WRONG, password, cluster.key[2]]
    hidden += [quote(one, safe="") for one in hidden]
    found = {one: [text[max(0, text.index(one) - 200) :][:400] for text in said if one in text] for one in hidden}
    assert {one: texts for one, texts in found.items() if texts} == {}
