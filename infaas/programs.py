"""Starts one program of the system: `python -m infaas.programs controller|worker|generator`.

`infaas up` runs each program this way, and so does a container or a unit file. It prepares what must be there before
the component is imported: thread pools of one thread (the worker alone decides what runs in parallel, SURFACE rule
14), the settings, the log, and the tie to the supervisor.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

from infaas.errors import InfaasError, NotFoundError, SettingsError
from infaas.processes.seat import seat_of
from infaas.settings import Settings, load_settings
from infaas.up.restart import SETTINGS_EXIT
from infaas.up.tether import GUARDIAN_PID, SUPERVISOR_PID, die_with, end_with

GROUP = "infaas.programs"
FAILURE_EXIT = 1
SHARED_OUT = "controller"
"""The program that may be several processes."""
THREAD_POOLS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print(f"usage: python -m infaas.programs {'|'.join(sorted(names()))}", file=sys.stderr)
        return SETTINGS_EXIT
    return run(arguments[0])


def run(name: str, environ: Mapping[str, str] | None = None) -> int:
    """Run a program until it is told to stop; returns its exit status: 2 when its settings are wrong, 1 when something
    that it needs is not there."""
    env = dict(os.environ) if environ is None else dict(environ)
    for variable in THREAD_POOLS:
        os.environ[variable] = "1"
    # Programs start children that replace themselves at once; gRPC's handlers for a plain fork break the pipes to them.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    # ONNX Runtime reports its use to its vendor and keeps an id in the home folder; a server of ours does neither.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    # From here until the component sets its own handlers, a stop during the imports is a clean end.
    signal.signal(signal.SIGTERM, _stop_early)
    try:
        seat = seat_of(env)
        if env.get(SUPERVISOR_PID):
            # The next master of several processes needs their ports, so these do not outlive theirs to finish anything.
            die_with(int(env[SUPERVISOR_PID]), signal.SIGTERM if seat.is_alone else signal.SIGKILL)
        if env.get(GUARDIAN_PID):
            end_with(int(env[GUARDIAN_PID]))
        settings = load_settings(environ=env)
        _configure_log(settings, name if seat.is_alone else f"{name}-{seat.number}")
        if name == SHARED_OUT and seat.is_alone and settings.controller.processes > 1:
            from infaas.processes.master import run as run_processes

            return run_processes(settings)
        load(name)(settings)
    except SettingsError as error:
        print(f"infaas {name}: {error.text}", file=sys.stderr)
        return SETTINGS_EXIT
    except InfaasError as error:
        # Something it needs is not there; the supervisor tries again.
        print(f"infaas {name}: {error.text}", file=sys.stderr)
        return FAILURE_EXIT
    except KeyboardInterrupt:
        return 0
    return 0


def names() -> list[str]:
    """The programs that are installed."""
    return [entry.name for entry in entry_points(group=GROUP)]


def load(name: str) -> Callable[[Settings], None]:
    """The program's main function. Raises NotFoundError for a name that no installed package offers."""
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            found: Callable[[Settings], None] = entry.load()
            return found
    raise NotFoundError(f"no program {name!r}; installed are {', '.join(sorted(names())) or 'none'}")


def _configure_log(settings: Settings, program: str) -> None:
    from infaas.observe.log import configure_logging

    configure_logging(settings.log, component=program)


def _stop_early(number: int, frame: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    raise SystemExit(main())
