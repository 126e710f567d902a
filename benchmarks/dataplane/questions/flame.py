"""Where the processor time of a query goes: what a program was doing whenever somebody looked, as a flame graph.

py-spy looks from the load's core and does not stop what it looks at, so the load is served as fast as without it; a
stack that changes while it is read may be a wrong one, which among thousands does not matter.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dataplane import tables
from dataplane.cells import CONNECTIONS, Run, Started, closed, own_systems, started, tell
from dataplane.environments import CannotMakeError, python_of
from dataplane.graphs import SMALL_MLP
from dataplane.own import editions, seen
from dataplane.questions.answer import Answer
from dataplane.servers import BINARY, LeftOut, Server

HEADINGS = ("system", "program", "function", "by itself", "with what it calls")
SHOWN = 25
"""Functions of each program, by what they take themselves."""
RATE_HZ = 400
_PROGRAMS = ("controller", "worker")


def of_flame(run: Run) -> Answer:
    """Of INFaaS alone, small MLP, binary REST."""
    rows: list[list[str]] = []
    drawn: dict[str, bytes] = {}
    with own_systems(run, editions(run.settings)) as (own, missing):
        with started(run, SMALL_MLP, own, ()) as up:
            missing += up.left_out
            try:
                spy = python_of("py-spy", run.kit.cache).with_name("py-spy")
            except CannotMakeError as error:
                return Answer("Flame", "", [*missing, LeftOut("py-spy", str(error))], {})
            for server in up.servers:
                for program in _programs(server):
                    name = "-".join([server.name.replace(", ", "-").replace(" ", "-"), program])
                    try:
                        stacks = _sampled(run, up, server, program, spy, "raw").decode(errors="replace")
                        drawn[name] = titled(_sampled(run, up, server, program, spy, "flamegraph"), name)
                    except CannotLookError as error:
                        missing.append(LeftOut(f"{server.name}, {program}", str(error)))
                        continue
                    rows += _rows(server.name, program, stacks)
        shipped = seen(own)
    title = f"Flame: samples of each program, small MLP, binary, {CONNECTIONS} connections"
    return Answer(title, tables.table(HEADINGS, rows), missing, {"rows": rows, "shipped": shipped}, drawn)


class CannotLookError(Exception):
    """With what py-spy said."""


def _programs(server: Server) -> Sequence[str]:
    return [name for name in server.roots if name.startswith(_PROGRAMS)]


def _sampled(run: Run, up: Started, server: Server, program: str, spy: Path, form: str) -> bytes:
    """What py-spy wrote in that form while the load ran. Raises CannotLookError."""
    file = run.kit.folder / f"{program}.{form}"
    seconds = run.effort.seconds + run.effort.warm_s
    words = [
        spy, "record", "--nonblocking", "--pid", server.roots[program], "--rate", RATE_HZ, "--format", form,
        "--duration", max(1, int(seconds)), "--output", file,
    ]  # fmt: skip
    tell(f"{server.name}: looking at {program}")
    looking = subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        closed(up, server, BINARY, run.effort)
        _, complaint = looking.communicate()
    finally:
        looking.kill()
        looking.wait()
    if looking.returncode != 0 or not file.is_file():
        raise CannotLookError(complaint.strip()[-300:] or f"py-spy ended with {looking.returncode}")
    return file.read_bytes()


def titled(picture: bytes, title: str) -> bytes:
    """In place of the command that made it, which says more of the machine than of the picture."""
    return re.sub(rb'(<text id="title"[^>]*>)[^<]*', lambda found: found[1] + title.encode(), picture, count=1)


def _rows(system: str, program: str, stacks: str) -> list[list[str]]:
    """The functions that took most themselves, of stacks as py-spy writes them: `a;b;c 12`."""
    alone: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        if not stack or not count.isdigit():
            continue
        frames = [frame.rpartition(":")[0] or frame for frame in stack.split(";")]
        alone[frames[-1]] += int(count)
        for frame in set(frames):
            within[frame] += int(count)
    whole = alone.total() or 1
    return [
        [system, program, name, tables.share(count / whole), tables.share(within[name] / whole)]
        for name, count in alone.most_common(SHOWN)
    ]
