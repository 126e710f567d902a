"""What a worker's process leaves behind when it dies at once: which instances were running, and of what it died.

A fatal signal in native code gives no time to write anything, so what runs is kept in a file mapped into memory (a
byte is set when a run begins, cleared when it ends; the kernel keeps it whatever becomes of the process), and the
interpreter's own handler of fatal signals writes their names. The next life of the worker reads both. A process that
was killed from outside leaves no such name, and nothing is blamed for it.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import Death
from infaas.errors import SettingsError
from infaas_worker.decide.events import DeathRemembered

SLOTS = 1024
SLOT_BYTES = 512
_FATAL = "Fatal Python error: "
_READ_AT_MOST = 4096


@dataclass(frozen=True, slots=True)
class Slot:
    instance: str
    variant: str
    was_running: bool


def deaths(slots: Sequence[Slot], fault: str, hung: str) -> tuple[DeathRemembered, ...]:
    """Whom to blame for the end of the last life. `fault`: what the handler of fatal signals wrote; `hung`: why the
    process had to be replaced, beginning with the instance's id. One thread of several died: all that ran are suspects.
    """
    found = []
    cause = fault_name(fault)
    running = [slot for slot in slots if slot.was_running]
    for slot in running:
        if cause:
            others = f", one of {len(running)} that ran" if len(running) > 1 else ""
            reason = f"ended its worker's process while it ran: {cause}{others}"
            found.append(_remembered(slot, reason, Death.CRASHED))
        elif hung.startswith(f"instance {slot.instance} "):
            found.append(_remembered(slot, f"its worker was replaced: {hung}", Death.HUNG))
    return tuple(found)


def fault_name(text: str) -> str:
    """The signal's name in the interpreter's words, such as `Segmentation fault`; empty when there was none."""
    for line in text.splitlines():
        if line.startswith(_FATAL):
            return line.removeprefix(_FATAL).strip()
    return ""


def _remembered(slot: Slot, reason: str, death: Death) -> DeathRemembered:
    return DeathRemembered(InstanceId(slot.instance), VariantName(slot.variant), reason, death)


class BlackBox:
    """Made once per process, by the composition root, and written from its event loop. One file per worker id."""

    def __init__(self, folder: Path, worker: str) -> None:
        """Reads what the life before left, then begins anew. Raises SettingsError when the files cannot be had."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._hung_path = folder / f"worker-{worker}.hung"
            self._fault_path = folder / f"worker-{worker}.fault"
            self._box_path = folder / f"worker-{worker}.running"
            self.deaths = deaths(_read_slots(self._box_path), _read(self._fault_path), _read(self._hung_path))
            self._hung_path.unlink(missing_ok=True)
            self._map = _fresh_map(self._box_path)
            self._fault: BinaryIO = self._fault_path.open("wb")
        except OSError as error:
            raise SettingsError(f"{folder} cannot keep what the worker runs: {error}") from error
        self._is_armed = False
        self._slot_of: dict[str, int] = {}
        self._free = list(reversed(range(SLOTS)))
        self._runs: dict[str, int] = {}

    def arm(self) -> None:
        """From now on a fatal signal writes its name before it ends the process."""
        faulthandler.enable(self._fault)
        self._is_armed = True

    def disarm(self) -> None:
        """An orderly end leaves nothing."""
        self.abandon()
        for path in (self._fault_path, self._box_path):
            path.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Let go of the files and leave what they say to the next life."""
        if self._is_armed:
            faulthandler.disable()
        self._fault.close()
        self._map.close()

    def loaded(self, instance: str, variant: str) -> None:
        """An instance that shares this process. One too many for the slots is not kept; nothing else changes."""
        text = json.dumps([instance, variant]).encode()
        if not self._free or len(text) > SLOT_BYTES - 4:
            return
        slot = self._slot_of[instance] = self._free.pop()
        at = slot * SLOT_BYTES
        self._map[at : at + SLOT_BYTES] = (b"\0" + len(text).to_bytes(2, "little") + text).ljust(SLOT_BYTES, b"\0")

    def gone(self, instance: str) -> None:
        slot = self._slot_of.pop(instance, None)
        self._runs.pop(instance, None)
        if slot is not None:
            self._map[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES] = bytes(SLOT_BYTES)
            self._free.append(slot)

    def began(self, instance: str) -> None:
        slot = self._slot_of.get(instance)
        if slot is not None:
            self._runs[instance] = self._runs.get(instance, 0) + 1
            self._map[slot * SLOT_BYTES] = 1

    def ended(self, instance: str) -> None:
        slot = self._slot_of.get(instance)
        left = max(0, self._runs.get(instance, 0) - 1)
        if slot is not None:
            self._runs[instance] = left
            self._map[slot * SLOT_BYTES] = 1 if left else 0

    def condemned(self, reason: str) -> None:
        """Why this life is being ended. Raises OSError."""
        self._hung_path.write_text(reason)


def _read_slots(path: Path) -> list[Slot]:
    """What cannot be read is nobody's: a file cut short by a full disk, or of another version."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for at in range(0, len(data) - SLOT_BYTES + 1, SLOT_BYTES):
        size = int.from_bytes(data[at + 1 : at + 3], "little")
        if not 0 < size <= SLOT_BYTES - 3:
            continue
        try:
            instance, variant = json.loads(data[at + 3 : at + 3 + size])
        except ValueError:
            continue
        found.append(Slot(str(instance), str(variant), data[at] == 1))
    return found


def _fresh_map(path: Path) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.ftruncate(descriptor, SLOTS * SLOT_BYTES)
        return mmap.mmap(descriptor, SLOTS * SLOT_BYTES)
    finally:
        os.close(descriptor)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_READ_AT_MOST).decode(errors="replace")
    except FileNotFoundError:
        return ""
