"""`infaas doctor`: what a system needs on this machine, checked one by one, each with what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from infaas import machine
from infaas.errors import InfaasError
from infaas.settings import Settings, load_settings
from infaas.up import health, preflight
from infaas.up.record import is_up, read_endpoints, read_up

OLDEST_PYTHON = (3, 11)
OLDEST_REDIS = (6, 2)
LOW_SPACE_BYTES = 1 * 2**30
LOW_MEMORY_BYTES = 1 * 2**30
FIRST_SENSIBLE_YEAR = 2025
COMMAND_TIMEOUT_S = 10.0


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    verdict: Verdict
    found: str
    remedy: str | None = None


def examine(config: Path | None, state_dir: Path | None) -> list[Finding]:
    """Run every check; none raises."""
    findings = [check_python(sys.version_info[:3]), check_packages()]
    try:
        overrides = {"state_dir": str(state_dir.absolute())} if state_dir else None
        settings = load_settings(config, overrides=overrides)
        settings.require_secrets()
    except InfaasError as error:
        return [*findings, Finding("settings", Verdict.FAIL, error.text, "infaas config validate")]
    findings.append(Finding("settings", Verdict.OK, str(config or os.environ.get("INFAAS_CONFIG") or "defaults")))
    checks: tuple[Callable[[Settings], Finding], ...] = (
        check_redis,
        check_exposure,
        check_folder,
        check_space,
        check_ports,
        check_system,
    )
    findings += [check(settings) for check in checks]
    cores, quota = machine.usable_cores(), machine.cpu_quota()
    findings += [check_cores(cores, quota), check_memory(machine.usable_memory_bytes()), check_clock(time.time())]
    return findings


def check_python(found: tuple[int, ...]) -> Finding:
    text = ".".join(str(part) for part in found)
    if found < OLDEST_PYTHON:
        return Finding("python", Verdict.FAIL, text, "install Python 3.11 or newer")
    return Finding("python", Verdict.OK, text)


def check_packages() -> Finding:
    """Whether what `infaas` requires is installed in a version that it admits."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(text) for text in requires("infaas") or ()]
    except PackageNotFoundError:
        return Finding("packages", Verdict.FAIL, "infaas is not installed", "pip install infaas")
    problems = []
    for one in needed:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            if not one.specifier.contains(version(one.name), prereleases=True):
                problems.append(f"{one.name} {version(one.name)} is not {one.specifier}")
        except PackageNotFoundError:
            problems.append(f"{one.name} is missing")
    if problems:
        return Finding("packages", Verdict.FAIL, "; ".join(problems), "pip install --upgrade infaas")
    return Finding("packages", Verdict.OK, f"infaas {version('infaas')} and all it requires")


def check_redis(settings: Settings) -> Finding:
    """The private server's binary and version; a configured Redis is asked nothing here."""
    if settings.store.redis_url is not None:
        return Finding("redis", Verdict.OK, "store.redis_url is set: no private server is started")
    from infaas.store.server import find_redis_server

    remedy = "install redis-server 6.2 or newer, or name one with INFAAS_REDIS_SERVER"
    try:
        binary = find_redis_server(os.environ)
        said = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=True
        )
    except InfaasError as error:
        return Finding("redis", Verdict.FAIL, error.text, remedy)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("redis", Verdict.FAIL, f"the binary does not run: {error}", remedy)
    found = redis_version(said.stdout)
    if found is None:
        return Finding("redis", Verdict.WARN, f"{binary} says {said.stdout.strip()[:60]!r}", remedy)
    text = f"{'.'.join(map(str, found))} at {binary}"
    return Finding("redis", Verdict.OK, text) if found >= OLDEST_REDIS else Finding("redis", Verdict.FAIL, text, remedy)


def redis_version(text: str) -> tuple[int, ...] | None:
    """From `Redis server v=6.2.14 sha=...`."""
    for word in text.split():
        if word.startswith("v="):
            parts = word[2:].split(".")
            return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else None
    return None


def check_exposure(settings: Settings) -> Finding:
    host = settings.controller.host
    try:
        preflight.check_exposure(settings)
    except InfaasError as error:
        return Finding("exposure", Verdict.FAIL, error.text, "set auth.token_file, or bind 127.0.0.1")
    guard = "with a token" if settings.token() else "without a token"
    return Finding("exposure", Verdict.OK, f"{host}, {guard}")


def check_folder(settings: Settings) -> Finding:
    folder = settings.state_dir
    try:
        preflight.prepare_folder(folder)
        probe = folder / "run" / f".doctor.{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except InfaasError as error:
        return Finding("state folder", Verdict.FAIL, error.text, "pick another with --state-dir or INFAAS_STATE_DIR")
    except OSError as error:
        remedy = "pick another with --state-dir or INFAAS_STATE_DIR"
        return Finding("state folder", Verdict.FAIL, f"{folder} cannot be written: {error.strerror}", remedy)
    return Finding("state folder", Verdict.OK, f"{folder} is writable")


def check_space(settings: Settings) -> Finding:
    folder = settings.state_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free"
    if free < LOW_SPACE_BYTES:
        return Finding("space", Verdict.WARN, text, f"free some on the disk of {folder}, or move the state folder")
    return Finding("space", Verdict.OK, text)


def check_ports(settings: Settings) -> Finding:
    """Taken ports are as they should be while our own controller holds them."""
    if is_up(read_up(settings.state_dir)):
        return Finding("ports", Verdict.OK, "held by the system that is up")
    try:
        preflight.check_ports(settings)
    except InfaasError as error:
        return Finding("ports", Verdict.FAIL, error.text, "infaas up --http-port 0 --grpc-port 0 --metrics-port 0")
    ports = (settings.controller.http_port, settings.controller.grpc_port, settings.controller.metrics_port)
    return Finding("ports", Verdict.OK, f"{', '.join(str(port) for port in ports)} are free")


def check_system(settings: Settings) -> Finding:
    """How the system of this state folder fares, when one is up."""
    try:
        record = read_up(settings.state_dir)
        endpoints = read_endpoints(settings.state_dir)
    except InfaasError as error:
        return Finding("system", Verdict.WARN, error.text, "infaas down, then infaas up")
    if record is None or not is_up(record):
        return Finding("system", Verdict.OK, "not up")
    ill = [f"{p.name} {p.state} ({p.last_exit})" for p in record.programs if p.state != "running"]
    if ill:
        logs = ", ".join(p.log for p in record.programs if p.state != "running")
        return Finding("system", Verdict.FAIL, "; ".join(ill), f"read {logs}")
    if endpoints is None or not health.is_ready(endpoints):
        return Finding("system", Verdict.FAIL, "up, but not ready", "infaas status; read the logs it names")
    if lost := lost_parts(health.parts(endpoints, settings.token())):
        return Finding("system", Verdict.FAIL, f"ready at {endpoints.url}, but {'; '.join(lost)}", "infaas status")
    return Finding("system", Verdict.OK, f"ready at {endpoints.url}")


def lost_parts(known: Mapping[str, Any] | None) -> list[str]:
    """Which of the parts that a controller depends on are not up, by its own words; none when it says nothing."""
    if known is None:
        return []
    states = {name: known[name] for name in ("store", "catalogue")}
    return [f"{name} {part['state']}: {part['reason']}" for name, part in states.items() if part["state"] != "up"]


def check_cores(cores: int, quota: float | None) -> Finding:
    text = f"{cores} usable" + (f", the cgroup grants {quota:.2f}" if quota is not None else "")
    if quota is not None and quota < 1:
        return Finding("cores", Verdict.WARN, text, "less than one core: expect late answers; raise the CPU limit")
    if cores < 2:
        return Finding("cores", Verdict.WARN, text, "controller and workers share one core; two or more are better")
    return Finding("cores", Verdict.OK, text)


def check_memory(usable_bytes: int) -> Finding:
    text = f"{usable_bytes / 2**30:.1f} GiB usable"
    if usable_bytes < LOW_MEMORY_BYTES:
        return Finding("memory", Verdict.WARN, text, "an idle system needs 400 MB; give it more, or set pools.*.memory")
    return Finding("memory", Verdict.OK, text)


def check_clock(wall_s: float) -> Finding:
    """Records are dated; a machine that believes it is 1970 dates them wrongly."""
    now = datetime.fromtimestamp(wall_s, UTC)
    text = now.strftime("%Y-%m-%d %H:%M:%S UTC")
    if now.year < FIRST_SENSIBLE_YEAR:
        return Finding("clock", Verdict.WARN, text, "set the machine's clock (timedatectl set-ntp true)")
    return Finding("clock", Verdict.OK, text)
