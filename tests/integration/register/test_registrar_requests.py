"""What callers ask of the registrar, and what it answers: repeats, problems in words, documents."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from infaas_controller.register.options import RegistrationOptions, TaskChange, Upload
from registrar_house import House, MakeData, MakeModel, Register

from infaas.control import RegistrationDocument
from infaas.domain.build import BuildResult
from infaas.domain.ids import BuildId
from infaas.domain.task import Task
from infaas.errors import ConflictError, InvalidError, NotFoundError, TooLargeError
from infaas.rpc.codec import decode, encode
from infaas.settings import Settings
from infaas.store.base import Kind
from infaas.testing.builders import a_task, a_variant


async def test_the_same_file_twice_is_one_version_with_hints(house: House, register: Register) -> None:
    await register()
    again = await register()
    assert (again.version, again.is_new, again.created_task) == (1, False, False)
    assert (await register(2.0)).version == 2


async def test_two_clients_at_the_same_moment_make_one_version(house: House, register: Register) -> None:
    documents = await asyncio.gather(register(), register(), register())
    assert [d.version for d in documents] == [1, 1, 1]
    assert sorted(d.is_new for d in documents) == [False, False, True]
    assert len((await house.registrar.describe_model("net")).versions) == 1


async def test_two_new_models_of_one_new_task_agree_on_it(
    house: House, model_file: MakeModel, data_file: MakeData
) -> None:
    data = data_file()
    narrow = Upload(model_file("a.onnx"), "a.onnx", data)
    both = Upload(model_file("b.onnx", outputs=("label",)), "b.onnx", data)
    options = RegistrationOptions("digits")
    found = await asyncio.gather(
        house.registrar.register(narrow, options), house.registrar.register(both, options), return_exceptions=True
    )
    made = [d for d in found if isinstance(d, RegistrationDocument)]
    assert sum(d.created_task for d in made) == 1
    task = (await house.registrar.describe_task("digits")).task
    if task.outputs[0].name == "label":
        assert len(made) == 2, "a label can be made from scores"
    else:
        (refused,) = [e for e in found if isinstance(e, InvalidError)]
        assert "lacks output 'scores'" in refused.text


async def test_an_idempotency_key_answers_as_before_and_is_no_ones_else(house: House, register: Register) -> None:
    first = await register(key="k1")
    assert await register(key="k1") == first
    with pytest.raises(ConflictError, match="Idempotency-Key"):
        await register(2.0, key="k1")


@pytest.mark.parametrize(
    ("filename", "options", "words"),
    [
        ("net.onnx", {"task": "../etc"}, "task '../etc' must match"),
        ("net.onnx", {"name": "a/b"}, "model name 'a/b' must match"),
        ("../../evil.onnx", {"name": None}, "file name '../../evil.onnx' is a path"),
        ("..onnx", {"name": None}, "must match"),
        ("net.onnx", {"name": "digits"}, "cannot both be called 'digits'"),
        ("net.onnx", {"metric": "os.system"}, "unknown metric 'os.system'; known are accuracy, f1, mae, rmse"),
        ("net.onnx", {"accuracy": 1.5}, "accuracy 1.5 must be between 0 and 1"),
        ("net.onnx", {"accuracy": float("nan")}, "must be between 0 and 1"),
        ("net.onnx", {"labels": {"a b": "c"}}, "label 'a b' must match"),
        ("net.onnx", {"mapping": {"x": ""}}, "--map x=: both names must be given"),
    ],
)
async def test_options_that_are_wrong_are_refused_in_words(
    house: House, model_file: MakeModel, data_file: MakeData, filename: str, options: dict[str, Any], words: str
) -> None:
    said = RegistrationOptions(**{"task": "digits", "name": "net", **options})
    with pytest.raises(InvalidError) as caught:
        await house.registrar.register(Upload(model_file(), filename, data_file()), said)
    assert any(words in problem for problem in caught.value.problems), caught.value.problems
    assert house.catalog.tasks() == []


async def test_neither_data_nor_accuracy_is_refused_and_declared_accuracy_is_kept(
    house: House, model_file: MakeModel
) -> None:
    upload = Upload(model_file(), "net.onnx")
    with pytest.raises(InvalidError, match="neither evaluation data nor an accuracy"):
        await house.registrar.register(upload, RegistrationOptions("digits"))
    await house.registrar.register(upload, RegistrationOptions("digits", accuracy=0.8))
    assert (await house.registrar.describe_version("net", 1)).declared_accuracy == 0.8


async def test_problems_of_options_and_files_come_together(house: House, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(InvalidError) as caught:
        await house.registrar.register(Upload(path, "bad.onnx"), RegistrationOptions("a b", metric="nope"))
    text = caught.value.text
    for words in ("problems: ", "task 'a b'", "unknown metric", "neither evaluation", "not an ONNX"):
        assert words in text


async def test_names_taken_at_another_level_are_a_conflict(house: House, register: Register) -> None:
    await register()
    with pytest.raises(ConflictError, match="already taken by a model"):
        await register(2.0, task="net", name="other")
    await house.registrar.create_task(a_task("second"))
    with pytest.raises(ConflictError, match="already taken by a task"):
        await register(2.0, name="second")
    with pytest.raises(InvalidError, match="solves task 'digits', not 'second'"):
        await register(2.0, task="second")


async def test_files_beyond_the_limit_are_refused(house: House, model_file: MakeModel, data_file: MakeData) -> None:
    controller = house.settings.controller.model_copy(update={"max_upload_bytes": 1024})
    house.settings = house.settings.model_copy(update={"controller": controller})
    registrar = house.again()
    data = data_file(x=np.zeros((900, 4), "f4"), label=np.zeros(900, int))
    with pytest.raises(TooLargeError, match="at most 1,024"):
        await registrar.register(Upload(model_file(), "net.onnx", data), RegistrationOptions("digits"))


async def test_task_defaults_of_the_configuration_go_over_those_that_were_set(
    house: House, tmp_path: Path, register: Register
) -> None:
    house.settings = Settings.model_validate(
        {"state_dir": tmp_path / "state", "tasks": {"digits": {"defaults": {"slo_latency_ms": 20}}}}
    )
    house.again()
    await register()
    await house.registrar.set_task("digits", TaskChange({"slo_accuracy_min": 0.8, "objective": "latency"}, {"a": "b"}))
    await house.registrar.step_refill()
    task = decode(await house.record(Kind.TASK, "digits") or b"", Task)
    assert (task.defaults.slo_latency_ms, task.defaults.slo_accuracy_min) == (20, 0.8)
    with pytest.raises(ConflictError, match="the configuration sets slo_latency_ms"):
        await house.registrar.set_task("digits", TaskChange({"slo_latency_ms": 5}))
    with pytest.raises(InvalidError, match="unknown default 'speed'"):
        await house.registrar.set_task("digits", TaskChange({"speed": 5}))
    with pytest.raises(InvalidError, match="slo_accuracy_min"):
        await house.registrar.set_task("digits", TaskChange({"slo_accuracy_min": 5}))
    with pytest.raises(InvalidError, match="policy 'magic' is not known"):
        await house.registrar.set_task("digits", TaskChange({"policy": "magic"}))


async def test_documents_show_the_frontier_and_the_default_floor(house: House, register: Register) -> None:
    await register()
    await house.turn()
    for recipe, p95, accuracy, cost in (("good", 4.0, 0.95, 0.2), ("cheap", 2.0, 0.9, 0.1), ("bad", 5.0, 0.9, 0.3)):
        variant = replace(
            a_variant(f"net.v1.{recipe}", model="net", p95_ms=p95, accuracy=accuracy, cost=cost), recipe=recipe
        )
        result = BuildResult(BuildId("net@1"), recipe, variant, "made", "")
        await house.store.put(Kind.RESULT, f"net@1/{recipe}", encode(result))
    end = BuildResult(BuildId("net@1"), "*", None, "made", "")
    await house.store.put(Kind.RESULT, "net@1/*", encode(end))
    for _ in range(3):
        await house.turn()
    documents = {d.recipe: d for d in await house.registrar.list_variants(task="digits")}
    assert {r: (d.is_on_frontier, d.dominated_by) for r, d in documents.items()} == {
        "good": (True, None),
        "cheap": (True, None),
        "bad": (False, "net.v1.cheap"),
    }
    task = await house.registrar.describe_task("digits")
    assert (task.ready_variants, task.best_accuracy, task.models) == (3, 0.95, ("net",))
    assert task.default_floor == pytest.approx(0.93)
    assert [d.name for d in await house.registrar.list_variants(task="other")] == []
    with pytest.raises(NotFoundError):
        await house.registrar.list_variants(model="nope")
    await house.turn()
    assert house.fleet.asked == ["net.v1.good"], "the default floor rules the cheap one out"


async def test_a_build_is_watched_to_its_end(house: House, register: Register) -> None:
    await register()
    loops = [
        asyncio.create_task(house.registrar.run_results(), name="results"),
        asyncio.create_task(house.registrar.run_refill(), name="refill"),
    ]
    states = []
    try:
        async with asyncio.timeout(30):
            async for document in house.registrar.watch_build("net", 1):
                if document is None:
                    continue
                states.append(document.state)
                if len(states) == 1:
                    await house.build(1)
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.wait(loops)
    assert states[0] == "RECEIVED"
    assert states[-1] == "READY"
