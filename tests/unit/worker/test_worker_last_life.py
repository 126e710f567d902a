"""Whom a worker blames for the end of its last life, and how long it remembers: rules, files, no process in sight."""

from __future__ import annotations

import concurrent.futures.thread
import faulthandler
import threading
from pathlib import Path

import infaas_worker
import pytest
from infaas_worker.blackbox import UNTOLD_AT_MOST, BlackBox
from infaas_worker.decide.events import DeathRemembered
from infaas_worker.decide.last_life import (
    Doing,
    Slot,
    deaths,
    fault_name,
    reason_after,
    what_died,
    where_it_died,
)
from infaas_worker.obituary import Obituary

import infaas
from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import Death

HEAD = "Fatal Python error: Segmentation fault\n\nStack (most recent call first):\n"


def stack(*frames: str) -> str:
    return HEAD + "".join(f'  File "{file}", line 7 in work\n' for file in frames)


WORKER, SHARED = Path(infaas_worker.__file__).parent, Path(infaas.__file__).parent
THREAD = (threading.__file__,) * 3
POOL = (concurrent.futures.thread.__file__, *THREAD)
EXECUTOR = f"{WORKER}/executors/onnxruntime.py"
SERVING = stack("/venv/site-packages/onnxruntime/session.py", EXECUTOR, *THREAD)
FOREIGN = stack("/venv/site-packages/their_executor/run.py", *POOL)
ON_THREAD = f"{WORKER}/loading.py"
OPENS = f'{ON_THREAD}", line 88 in _open'
LOADING = stack(EXECUTOR, ON_THREAD, ON_THREAD, *THREAD).replace(f'{ON_THREAD}", line 7 in work', OPENS, 1)
UNLOADING = stack(EXECUTOR, ON_THREAD, *THREAD)
FETCHING = stack("/venv/site-packages/s3fs/core.py", f"{SHARED}/repository/remote.py", ON_THREAD, *THREAD)
LOOP = stack(EXECUTOR, f"{WORKER}/main.py", f"{SHARED}/programs.py")
HERE = LOOP.replace(
    HEAD, f'{HEAD}  File "{EXECUTOR}", line 7 in run\n  File "{WORKER}/residence.py", line 9 in run_here\n'
)
WATCH = stack(f"{WORKER}/monitor.py", *THREAD)
HELPER = stack(f"{SHARED}/observe/otlp.py", *POOL)
CALLS = stack("/venv/site-packages/grpc/_channel.py", *THREAD)
SLOTS = [Slot("i1", "v1", Doing.RUNNING), Slot("i2", "v2", Doing.NOTHING), Slot("i3", "v3", Doing.LOADING)]


@pytest.mark.parametrize(
    ("fault", "doing"),
    [
        (SERVING, Doing.RUNNING),
        (FOREIGN, Doing.RUNNING),
        (HEAD, Doing.RUNNING),
        (SERVING + "  ...\n", Doing.RUNNING),
        (LOADING, Doing.LOADING),
        (UNLOADING, Doing.NOTHING),
        (FETCHING, Doing.NOTHING),
        (LOOP, Doing.NOTHING),
        (HERE, Doing.RUNNING),
        (WATCH, Doing.NOTHING),
        (HELPER, Doing.NOTHING),
        (CALLS, Doing.NOTHING),
    ],
)
def test_the_thread_that_died_tells_what_it_was_for(fault, doing):
    assert what_died(fault) is doing


@pytest.mark.parametrize(
    ("fault", "blamed"),
    [
        (SERVING, ["i1"]),
        (LOADING, ["i3"]),
        (UNLOADING, []),
        (LOOP, []),
        (HERE, ["i1"]),
        (WATCH, []),
        (HEAD, ["i1"]),
        ("", []),
    ],
)
def test_a_fatal_signal_is_blamed_on_what_its_thread_was_for_and_a_kill_from_outside_on_nobody(fault, blamed):
    found = deaths(SLOTS, fault, "")
    assert [one.instance for one in found] == blamed
    assert all(one.death is Death.CRASHED and "Segmentation fault" in one.reason for one in found)


def test_all_that_ran_are_suspects():
    found = deaths([Slot("i1", "v1", Doing.RUNNING), Slot("i2", "v2", Doing.RUNNING)], SERVING, "")
    assert [(one.instance, "one of 2" in one.reason) for one in found] == [("i1", True), ("i2", True)]


@pytest.mark.parametrize("doing", [Doing.RUNNING, Doing.LOADING])
def test_a_replaced_worker_blames_the_one_that_hung(doing):
    (hung,) = deaths([Slot("i1", "v1", doing), Slot("i2", "v2", Doing.RUNNING)], "", "instance i1 of v1 hung for 9 s")
    assert (hung.instance, hung.death) == ("i1", Death.HUNG)
    assert fault_name("nothing of the kind") == ""


def test_what_the_interpreter_writes_of_a_thread_is_understood(tmp_path: Path):
    with (tmp_path / "fault").open("w+") as file:
        thread = threading.Thread(target=lambda: faulthandler.dump_traceback(file, all_threads=False))
        thread.start()
        thread.join()
        file.seek(0)
        in_thread = file.read()
        faulthandler.dump_traceback(file, all_threads=False)
        file.seek(len(in_thread))
        in_main = file.read()
    assert what_died(in_thread) is Doing.RUNNING  # neither the worker's nor the interpreter's own code
    assert what_died(in_main) is Doing.NOTHING
    assert where_it_died(in_thread).endswith(f"in {__file__}")


def life(folder: Path, *running: str, fault: str = SERVING) -> BlackBox:
    """One that ends in a crash while these run."""
    box = BlackBox(folder, "w1")
    for name in (*running, "idle"):
        box.loaded(name, f"v-{name}")
    for name in running:
        box.began(name)
    (folder / "worker-w1.fault").write_text(fault)
    box.abandon()
    return box


def names(box: BlackBox) -> list[str]:
    return [one.instance for one in box.deaths]


def next_life(folder: Path) -> BlackBox:
    """One that ends at once and tells nobody."""
    box = BlackBox(folder, "w1")
    box.abandon()
    return box


def test_the_next_life_reads_what_was_running_and_an_orderly_end_leaves_nothing(tmp_path: Path):
    life(tmp_path, "i1")
    again = BlackBox(tmp_path, "w1")
    assert names(again) == ["i1"]
    again.told()
    again.disarm()
    assert list(tmp_path.iterdir()) == []


def test_deaths_are_kept_over_lives_until_somebody_was_told(tmp_path: Path):
    life(tmp_path, "i1")
    life(tmp_path, "i2")
    third = BlackBox(tmp_path, "w1")
    assert names(third) == ["i1", "i2"]
    third.disarm()
    fourth = BlackBox(tmp_path, "w1")
    assert names(fourth) == ["i1", "i2"]
    assert [one.death for one in fourth.deaths] == [Death.CRASHED] * 2
    fourth.told()
    fourth.disarm()
    assert names(next_life(tmp_path)) == []


def test_of_too_many_untold_deaths_the_newest_are_kept_and_damage_is_left_out(tmp_path: Path):
    for number in range(UNTOLD_AT_MOST + 2):
        life(tmp_path, f"i{number}")
    with (tmp_path / "worker-w1.deaths").open("a") as file:
        file.write('7\nnull\n{"i": 1}\n["i9", "v9", "no", ["crashed"]]\n["cut')
    assert names(next_life(tmp_path)) == [f"i{number}" for number in range(2, UNTOLD_AT_MOST + 2)]


def test_a_slot_that_holds_something_else_is_nobodys(tmp_path: Path):
    life(tmp_path, "i1")
    with (tmp_path / "worker-w1.running").open("r+b") as file:
        file.write(bytes([Doing.RUNNING]) + (1).to_bytes(2, "little") + b"7")
    assert names(next_life(tmp_path)) == []


def test_a_worker_says_what_ended_its_last_life_and_not_what_ended_one_before(tmp_path: Path):
    life(tmp_path, "i1")
    life(tmp_path, "i2")
    box = next_life(tmp_path)
    assert reason_after(box.found, box.own_fault).startswith("started again: instance i2 of v-i2 ended its worker's")
    life(tmp_path, "i3", fault=LOOP)
    box = next_life(tmp_path)
    assert names(box) == ["i1", "i2"]
    assert reason_after(box.found, box.own_fault).startswith("started again: its own code ended it: Segmentation fault")
    box = next_life(tmp_path)
    assert names(box) == ["i1", "i2"]
    assert reason_after(box.found, box.own_fault) == ""


def test_deaths_that_cannot_be_kept_are_told_in_this_life_and_keep_nobody_from_starting(tmp_path: Path):
    (tmp_path / "worker-w1.deaths-new").mkdir()
    life(tmp_path, "i1")
    assert names(next_life(tmp_path)) == ["i1"]
    assert names(next_life(tmp_path)) == []


def test_a_crash_of_the_workers_own_code_is_said_and_blamed_on_nobody(tmp_path: Path):
    life(tmp_path, "i1", fault=LOOP)
    box = BlackBox(tmp_path, "w1")
    assert names(box) == []
    assert box.own_fault == f"Segmentation fault: work in {EXECUTOR}"
    box.disarm()
    assert next_life(tmp_path).own_fault == ""


def test_a_load_that_ends_the_process_is_blamed_for_it_and_one_that_failed_is_not(tmp_path: Path):
    box = BlackBox(tmp_path, "w1")
    box.loading("i1", "v1")
    box.loading("i2", "v2")
    box.gone("i2")
    box.loading("i3", "v3")
    box.loaded("i3", "v3")
    (tmp_path / "worker-w1.fault").write_text(LOADING)
    box.abandon()
    assert names(next_life(tmp_path)) == ["i1"]


class Hall:
    """An audience that comes and listens when the test says so."""

    is_there = False
    has_heard = False


class Notes:
    def __init__(self) -> None:
        self.deaths = (DeathRemembered(InstanceId("i1"), VariantName("v1"), "it crashed", Death.CRASHED),)
        self.is_told = False

    def told(self) -> None:
        self.is_told = True


def test_the_dead_are_shown_again_when_the_first_controller_comes_and_kept_until_it_has_heard():
    hall, notes, shown = Hall(), Notes(), []
    obituary = Obituary(notes, hall, shown.append)
    obituary.beat()
    assert (len(shown), notes.is_told) == (1, False)
    hall.is_there = True
    obituary.beat()
    assert (len(shown), notes.is_told) == (2, False)
    hall.is_there = False
    obituary.beat()
    hall.is_there = hall.has_heard = True
    obituary.beat()
    assert (len(shown), notes.is_told) == (3, False)
    obituary.beat()
    obituary.beat()
    assert (len(shown), notes.is_told) == (3, True)
