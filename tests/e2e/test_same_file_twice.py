"""One file from two client processes at the same moment: one version, one set of variants."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

import pytest
from running_system import PATIENCE_S, TASK, System, member, wait_for

from infaas.demo import family

pytestmark = pytest.mark.long
# Connected and with the file at hand, it waits for the word, so that all of them send at once.
CLIENT = """
import sys
from pathlib import Path
from infaas.client import Client
from infaas.rpc.codec import to_plain
import json
url, file, evaluation, task, name, *renames = sys.argv[1:]
with Client(url) as client:
    client.is_ready()
    print("ready", flush=True)
    sys.stdin.readline()
    made = client.register(Path(file), task=task, name=name, evaluation=Path(evaluation), renames=renames)
    print(json.dumps(to_plain(made)), flush=True)
"""


@dataclass(frozen=True)
class Registered:
    version: int
    is_new: bool


def register_at_once(system: System, model: family.FamilyModel, clients: int) -> list[Registered]:
    words = [system.endpoints.url, str(family.path(model.file)), str(family.path(family.EVAL_FILE)), TASK, model.name]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, *words, *model.renames],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(clients)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        found = []
        for process in processes:
            said, complained = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, complained
            made = json.loads(said)
            assert made["model"] == model.name
            found.append(Registered(made["version"], made["is_new"]))
        return found
    finally:
        for process in processes:
            process.kill()
            process.wait()


def assert_made_once(system: System, name: str) -> None:
    with system.client() as client:
        state = wait_for(lambda: _ended(client.build(name, 1).state), f"the build of {name}")
        assert state == "READY"
        document = client.model(name)
        assert [one.version for one in document.versions] == [1]
        version = document.versions[0]
        recipes = Counter(outcome.recipe for outcome in version.outcomes)
        assert set(recipes.values()) == {1}, recipes
        variants = [v.name for v in client.variants(model=name)]
        assert len(variants) == len(set(variants)) > 0
        made = [outcome.variant for outcome in version.outcomes if outcome.outcome == "made"]
        assert sorted(variants) == sorted(made)
        assert sorted(variants) == sorted(version.variants)


def _ended(state: str) -> str | None:
    return state if state in ("READY", "FAILED") else None


@pytest.fixture(scope="module")
def system(fresh_module_system: System) -> System:
    """With the task, so that every registration meets the same rules."""
    fresh_module_system.register(member("digits-centroid"))
    return fresh_module_system


@pytest.mark.parametrize(
    ("name", "clients"),
    [("digits-mlp", 2), ("digits-logistic", 2), ("digits-forest", 4), ("digits-cnn-small", 2)],
)
def test_one_file_from_several_processes_at_once_is_one_version(system: System, name: str, clients: int) -> None:
    found = register_at_once(system, member(name), clients)
    assert [one.version for one in found] == [1] * clients
    assert sum(one.is_new for one in found) == 1, found
    assert_made_once(system, name)


def test_the_first_file_of_a_task_may_come_twice_at_once_too(fresh_system: System) -> None:
    found = register_at_once(fresh_system, member("digits-mlp"), 2)
    assert [one.version for one in found] == [1, 1]
    assert sum(one.is_new for one in found) == 1, found
    assert_made_once(fresh_system, "digits-mlp")
    with fresh_system.client() as client:
        assert [document.task.name for document in client.tasks()] == [TASK]


def test_the_same_file_later_is_the_version_it_was(system: System) -> None:
    model = member("digits-centroid")
    said = system.register(model)
    assert f"{model.file} was registered before as {model.name} version 1." in said
    assert_made_once(system, model.name)
