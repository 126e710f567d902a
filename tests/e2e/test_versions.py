"""A model's life under traffic: a changed file, a rollback, the end of its service, and its return. No query fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from running_system import TASK, Scans, System, Traffic, ask_until_answered, member, wait_for

from infaas.client import QueryError
from infaas.demo import family
from infaas.domain.query import Code

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
MODEL = "digits-mlp"


@pytest.fixture(scope="module")
def system(fresh_module_system: System) -> System:
    fresh_module_system.register(member(MODEL))
    return fresh_module_system


def changed(folder: Path, note: str) -> Path:
    """The same network in another file: its digest is new, its answers are the same."""
    model = onnx.load(family.path(member(MODEL).file))
    entry = model.metadata_props.add()
    entry.key, entry.value = "note", note
    file = folder / f"{MODEL}-{note}.onnx"
    onnx.save(model, file)
    return file


def register(system: System, file: Path) -> str:
    words = ("--task", TASK, "--name", MODEL, "--eval", family.path(family.EVAL_FILE))
    return system.infaas("model", "register", file, *words)


def serves(system: System, version: int) -> Callable[[], bool]:
    def question() -> bool:
        with system.client() as client:
            return client.model(MODEL).serves == version

    return question


def test_a_changed_file_serves_once_it_is_warm_and_a_rollback_brings_the_old_one_back(
    system: System, scans: Scans, tmp_path: Path
) -> None:
    with Traffic(system.endpoints.url, MODEL, scans).running() as traffic:
        said = register(system, changed(tmp_path, "second"))
        assert f"{MODEL} version 2 serves" in said
        wait_for(lambda: {one.version for one in traffic.wait_for_more(4)} == {"2"}, "answers of version 2 alone")
        switched = len(traffic.sent)

        system.infaas("model", "rollback", MODEL)
        wait_for(serves(system, 1), "version 1 to serve again")
        wait_for(lambda: {one.version for one in traffic.wait_for_more(4)} == {"1"}, "answers of version 1 alone")
    assert traffic.failed == []
    before, after = traffic.sent[:switched], traffic.sent[switched:]
    assert {one.version for one in before} == {"1", "2"}
    assert {one.version for one in after} == {"1", "2"}
    assert before[0].version == "1"

    with system.client() as client:
        # Who names a version gets it, whichever serves.
        for version in ("1", "2"):
            answer = wait_for(lambda version=version: _answer(system, scans, version), f"version {version}")
            assert answer.startswith(f"{MODEL}.v{version}.")
        assert [(one.version, one.is_current) for one in client.versions(MODEL)] == [(1, True), (2, False)]


def _answer(system: System, scans: Scans, version: str) -> str | None:
    with system.client() as client:
        try:
            return client.infer(MODEL, scans.rows(0), version=version).served.variant
        except QueryError as error:
            if error.is_retryable:
                return None
            raise


def test_a_third_file_that_cannot_be_read_changes_nothing(system: System, scans: Scans, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with Traffic(system.endpoints.url, MODEL, scans).running() as traffic:
        words = ("--task", TASK, "--name", MODEL, "--eval", family.path(family.EVAL_FILE))
        said = system.infaas("model", "register", broken, *words, expect=1)
        traffic.wait_for_more(10)
    assert "not an ONNX file" in said
    assert traffic.failed == []
    with system.client() as client:
        assert [one.version for one in client.versions(MODEL)] == [1, 2]


def test_an_unregistered_model_drains_is_gone_and_is_revived_by_its_file(
    system: System, scans: Scans, tmp_path: Path
) -> None:
    with Traffic(system.endpoints.url, MODEL, scans).running() as traffic, system.client() as client:
        system.infaas("model", "unregister", MODEL)
        wait_for(lambda: any(one.error for one in traffic.wait_for_more(4)), "the model to be gone for queries")
        gone = traffic.wait_for_more(10)
        assert {(one.error or "").split(":")[0] for one in gone} == {"not-found"}
        wait_for(lambda: not _loaded(system), "its instances to be gone")
    # Every query either was answered in full or came too late: none was lost on the way.
    assert {(one.error or "").split(":")[0] for one in traffic.failed} == {"not-found"}
    first_gone = min(one.began for one in traffic.failed)
    assert any(one.error is None and one.began < first_gone for one in traffic.sent)
    with system.client() as client:
        with pytest.raises(QueryError) as caught:
            client.infer(MODEL, scans.rows(0))
        assert caught.value.code is Code.NOT_FOUND
        assert MODEL in caught.value.text

    said = system.register(member(MODEL))
    assert f"{MODEL} version 1 serves" in said
    with system.client() as client:
        served = ask_until_answered(client, MODEL, scans)
        assert served.startswith(f"{MODEL}.v1.")
        assert ask_until_answered(client, TASK, scans).startswith(f"{MODEL}.v1.")
        assert next(one.version for one in client.versions(MODEL)) == 1


def _loaded(system: System) -> list[str]:
    with system.client() as client:
        return [one.variant for worker in client.workers() for one in worker.instances if one.variant.startswith(MODEL)]
