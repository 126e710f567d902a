"""What a worker's process leaves behind when it dies at once: which instances were running, and of what it died.

A fatal signal in native code gives no time to write anything, so what runs is kept in a file mapped into memory (a
byte is set when a run begins, cleared when it ends; the kernel keeps it whatever becomes of the process), and the
interpreter's own handler of fatal signals writes their names and where its thread was. The next life of the worker
reads both (`decide.last_life`) and keeps what it found until somebody has been told, be it several lives later. A
process that was killed from outside leaves no such name, and nothing is blamed for it.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import Death
from infaas.errors import SettingsError
from infaas.observe.log import get_logger
from infaas_worker.decide.events import DeathRemembered
from infaas_worker.decide.last_life import Doing, Slot, deaths, fault_name, where_it_died

_log = get_logger(__name__)
SLOTS = 1024
SLOT_BYTES = 512
UNTOLD_AT_MOST = 64
"""Deaths kept that nobody has been told of, the newest."""
_READ_AT_MOST = 64 * 1024


class BlackBox:
    """Made once per process, by the composition root, and written from its event loop. One set of files per worker."""

    def __init__(self, folder: Path, worker: str) -> None:
        """Reads what the lives before left, then begins anew. Raises SettingsError when the files cannot be had; a
        disk without room is no reason not to serve: what cannot be kept then is said in the log."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._hung_path = folder / f"worker-{worker}.hung"
            self._fault_path = folder / f"worker-{worker}.fault"
            self._box_path = folder / f"worker-{worker}.running"
            self._untold_path = folder / f"worker-{worker}.deaths"
            fault = _read(self._fault_path)
            found = deaths(_read_slots(self._box_path), fault, _read(self._hung_path))
            self.found = found
            """Whom this start blames for the end of the life before."""
            self.deaths = _merged(_read_untold(self._untold_path), found)
            """Those, and older ones that nobody has been told of."""
            self.own_fault = "" if found or not fault_name(fault) else f"{fault_name(fault)}: {where_it_died(fault)}"
            """How the last life ended when no instance is to blame; empty when no signal ended it."""
            if found:  # before what it was found in is made new
                _keep_untold(self._untold_path, self.deaths)
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
        """From now on a fatal signal writes its name, and where the thread was that it hit, before it ends the
        process."""
        faulthandler.enable(self._fault, all_threads=False)
        self._is_armed = True

    def disarm(self) -> None:
        """An orderly end leaves nothing but what nobody has been told yet."""
        self.abandon()
        for path in (self._fault_path, self._box_path):
            path.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Let go of the files and leave what they say to the next life."""
        if self._is_armed:
            faulthandler.disable()
        self._fault.close()
        self._map.close()

    def told(self) -> None:
        """Somebody who can act on it knows of `deaths`: the next life need not tell. Raises OSError."""
        self._untold_path.unlink(missing_ok=True)

    def loading(self, instance: str, variant: str) -> None:
        """An instance that shares this process begins to load. One too many for the slots is not kept; nothing else
        changes."""
        self._take_slot(instance, variant, Doing.LOADING)

    def loaded(self, instance: str, variant: str) -> None:
        if instance in self._slot_of:
            self._map[self._slot_of[instance] * SLOT_BYTES] = Doing.NOTHING
        else:
            self._take_slot(instance, variant, Doing.NOTHING)

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
            self._map[slot * SLOT_BYTES] = Doing.RUNNING

    def ended(self, instance: str) -> None:
        slot = self._slot_of.get(instance)
        left = max(0, self._runs.get(instance, 0) - 1)
        if slot is not None:
            self._runs[instance] = left
            self._map[slot * SLOT_BYTES] = Doing.RUNNING if left else Doing.NOTHING

    def condemned(self, reason: str) -> None:
        """Why this life is being ended. Raises OSError."""
        self._hung_path.write_text(reason)

    def _take_slot(self, instance: str, variant: str, doing: Doing) -> None:
        text = json.dumps([instance, variant]).encode()
        if not self._free or len(text) > SLOT_BYTES - 4:
            return
        slot = self._slot_of[instance] = self._free.pop()
        at = slot * SLOT_BYTES
        record = bytes([doing]) + len(text).to_bytes(2, "little") + text
        self._map[at : at + SLOT_BYTES] = record.ljust(SLOT_BYTES, b"\0")


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
            doing = Doing(data[at])
        except (ValueError, TypeError):
            continue
        found.append(Slot(str(instance), str(variant), doing))
    return found


def _read_untold(path: Path) -> list[DeathRemembered]:
    """As `_read_slots`: what cannot be read is left out."""
    found = []
    for line in _read(path).splitlines():
        try:
            instance, variant, reason, death = json.loads(line)
            one = DeathRemembered(InstanceId(str(instance)), VariantName(str(variant)), str(reason), Death(death))
        except (ValueError, TypeError):
            continue
        found.append(one)
    return found


def _keep_untold(path: Path, found: Sequence[DeathRemembered]) -> None:
    try:
        _write_untold(path, found)
    except OSError as error:
        _log.error("deaths cannot be kept: they are told in this life or never", path=str(path), reason=str(error))


def _write_untold(path: Path, found: Sequence[DeathRemembered]) -> None:
    """Whole or not at all."""
    fresh = path.with_suffix(".deaths-new")
    lines = [json.dumps([one.instance, one.variant, one.reason, one.death.value]) for one in found]
    fresh.write_text("".join(f"{line}\n" for line in lines))
    fresh.replace(path)


def _merged(before: Sequence[DeathRemembered], found: Sequence[DeathRemembered]) -> tuple[DeathRemembered, ...]:
    """Newest last; of one instance only the newest."""
    by_instance: dict[InstanceId, DeathRemembered] = {}
    for one in (*before, *found):
        by_instance.pop(one.instance, None)
        by_instance[one.instance] = one
    return tuple(by_instance.values())[-UNTOLD_AT_MOST:]


def _fresh_map(path: Path) -> mmap.mmap:
    """All zeros, in the file as far as the disk has room: to write where it has none would end the process. What an
    earlier life was given is kept, however full the disk is by now."""
    size = SLOTS * SLOT_BYTES
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        is_used = os.fstat(descriptor).st_size > 0
        os.ftruncate(descriptor, size)
        os.posix_fallocate(descriptor, 0, size)
        fresh = mmap.mmap(descriptor, size)
        if is_used:
            fresh[:] = bytes(size)
    except OSError as error:
        _log.error("what runs cannot be kept: a crash will not be explained", path=str(path), reason=str(error))
        path.unlink()
        return mmap.mmap(-1, size)
    finally:
        os.close(descriptor)
    return fresh


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_READ_AT_MOST).decode(errors="replace")
    except FileNotFoundError:
        return ""
