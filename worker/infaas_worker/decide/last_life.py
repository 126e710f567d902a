"""Whom to blame for the end of a worker's last life: pure rules over what that life left behind (`blackbox`).

A fatal signal is laid to instances only when it came from a thread that served or loaded them. A crash in the worker's
own code, while something happened to run, is the worker's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import infaas
from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import Death
from infaas_worker.decide.events import DeathRemembered

_FATAL = "Fatal Python error: "
_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line (?:\d+|\?\?\?) in (?P<function>.*)$')
_CUT = "  ..."
_STANDARD = Path(os.__file__).parent
_THREADING = str(_STANDARD / "threading.py")
_WORKER = Path(__file__).parents[1]
_EXECUTORS = _WORKER / "executors"
_LOADING = str(_WORKER / "loading.py")
_OPENS = "_open"
"""The function there under which executors load; fetching before it and unloading have the same threads."""
_RESIDENCE = str(_WORKER / "residence.py")
_RUNS_HERE = "run_here"
"""The function there under which the loop performs a run itself."""
_OWN = (_WORKER, Path(infaas.__file__).parent)
_GRPC = "/site-packages/grpc/"


class Doing(IntEnum):
    """What an instance was doing; the number is what the file holds."""

    NOTHING = 0
    RUNNING = 1
    LOADING = 2


@dataclass(frozen=True, slots=True)
class Slot:
    instance: str
    variant: str
    doing: Doing


def deaths(slots: Sequence[Slot], fault: str, hung: str) -> tuple[DeathRemembered, ...]:
    """`fault`: what the handler of fatal signals wrote of the thread that died; `hung`: why the process had to be
    replaced, beginning with the instance's id. Which of several was run by that thread is not known: all that ran are
    suspects."""
    cause = fault_name(fault)
    if not cause:
        return tuple(
            _remembered(slot, f"its worker was replaced: {hung}", Death.HUNG)
            for slot in slots
            if slot.doing is not Doing.NOTHING and hung.startswith(f"instance {slot.instance} ")
        )
    doing = what_died(fault)
    suspects = [slot for slot in slots if slot.doing is doing and doing is not Doing.NOTHING]
    others = f", one of {len(suspects)}" if len(suspects) > 1 else ""
    while_ = "while it was loaded" if doing is Doing.LOADING else "while it ran"
    reason = f"ended its worker's process {while_}: {cause}{others}"
    return tuple(_remembered(slot, reason, Death.CRASHED) for slot in suspects)


def reason_after(found: Sequence[DeathRemembered], own_fault: str) -> str:
    """What a worker says of its last life: whom this start `found` to blame for its end, else what its own code died
    of; empty when no crash ended it. Older deaths that nobody was told of are no part of it."""
    if found:
        first = found[0]
        return f"started again: instance {first.instance} of {first.variant} {first.reason}"
    return f"started again: its own code ended it: {own_fault}" if own_fault else ""


def fault_name(text: str) -> str:
    """The signal's name in the interpreter's words, such as `Segmentation fault`; empty when there was none."""
    for line in text.splitlines():
        if line.startswith(_FATAL):
            return line.removeprefix(_FATAL).strip()
    return ""


def what_died(fault: str) -> Doing:
    """What the thread that died was for; NOTHING: the worker's own affairs.

    That is told by the first code that the thread ran and that is not the standard library's. A thread that the
    interpreter does not know belongs to a runtime's pool and served. So did one of which the beginning is cut off,
    because only a model's own code goes so deep.
    """
    frames = [match for line in fault.splitlines() if (match := _FRAME.match(line))]
    files = [frame["file"] for frame in frames]
    if not files or any(line == _CUT for line in fault.splitlines()):
        return Doing.RUNNING
    if files[-1] != _THREADING:
        is_run = any(frame["file"] == _RESIDENCE and frame["function"] == _RUNS_HERE for frame in frames)
        return Doing.RUNNING if is_run else Doing.NOTHING  # the main thread, which performs brief runs itself
    first = next((file for file in reversed(files) if not _is_standard(file)), "")
    if first == _LOADING:
        is_load = any(frame["file"] == _LOADING and frame["function"] == _OPENS for frame in frames)
        return Doing.LOADING if is_load else Doing.NOTHING
    if Path(first).is_relative_to(_EXECUTORS):
        return Doing.RUNNING
    is_own = not first or _GRPC in first or any(Path(first).is_relative_to(home) for home in _OWN)
    return Doing.NOTHING if is_own else Doing.RUNNING


def where_it_died(fault: str) -> str:
    """The innermost place, for a log line; empty where the interpreter knew none."""
    for line in fault.splitlines():
        if match := _FRAME.match(line):
            return f"{match['function']} in {match['file']}"
    return ""


def _is_standard(file: str) -> bool:
    return Path(file).is_relative_to(_STANDARD) and "/site-packages/" not in file


def _remembered(slot: Slot, reason: str, death: Death) -> DeathRemembered:
    return DeathRemembered(InstanceId(slot.instance), VariantName(slot.variant), reason, death)
