from __future__ import annotations

import sys
from pathlib import Path

import pytest

from infaas.errors import SettingsError
from infaas.settings import Settings, load_settings
from infaas.up.plan import Machine, overrides_environ, programs

MACHINE = Machine(cores=8, memory_bytes=16 * 2**30)


def test_flags_reach_the_programs_as_variables_that_read_back_the_same() -> None:
    overrides = {
        "controller": {"http_port": 0, "host": "127.0.0.1"},
        "auth": {"token": "1234"},
        "log": {"level": "debug"},
        "worker": {"cores": None},
    }

    settings = load_settings(environ=overrides_environ(overrides))

    assert settings == load_settings(environ={}, overrides=overrides)
    assert settings.token() == "1234"


def test_one_machine_runs_redis_controller_generator_and_each_pool_s_workers(tmp_path: Path) -> None:
    settings = load_settings(
        environ={}, overrides={"state_dir": str(tmp_path), "pools": {"a": {"workers": 2}, "b": {}}}
    )

    table = programs(settings, MACHINE, ["/usr/bin/redis-server", "--port", "0"])

    assert [spec.name for spec in table] == [
        "redis", "controller", "generator", "worker-a-1", "worker-a-2", "worker-b-1"
    ]  # fmt: skip
    assert table[1].argv == (sys.executable, "-m", "infaas.programs", "controller")
    assert table[0].argv[-4:] == ("--", "/usr/bin/redis-server", "--port", "0")


def test_the_controller_stops_first_and_the_store_last() -> None:
    stages = {spec.name: spec.stop_stage for spec in programs(Settings(), MACHINE, ["redis-server"])}

    assert stages["controller"] < stages["worker-local-1"] < stages["redis"]


def test_without_a_private_redis_none_is_in_the_table() -> None:
    assert "redis" not in [spec.name for spec in programs(Settings(), MACHINE, None)]


def test_workers_that_name_no_resources_share_the_machine_evenly() -> None:
    settings = load_settings(environ={}, overrides={"pools": {"a": {"workers": 2}, "b": {"workers": 2, "cores": 1}}})

    told = [load_settings(environ=dict(spec.env)).worker for spec in programs(settings, MACHINE, None)[2:]]

    assert [(w.pool, w.id, w.cores, w.memory_bytes) for w in told] == [
        ("a", "a-1", 2, 2 * 2**30),
        ("a", "a-2", 2, 2 * 2**30),
        ("b", "b-1", None, 2 * 2**30),
        ("b", "b-2", None, 2 * 2**30),
    ]


def test_a_single_worker_is_left_to_choose_its_own_share() -> None:
    worker = programs(Settings(), MACHINE, None)[-1]

    assert "INFAAS_WORKER__CORES" not in worker.env
    assert "INFAAS_WORKER__MEMORY_BYTES" not in worker.env


def inline(**pools: dict[str, int]) -> Settings:
    return load_settings(environ={}, overrides={"worker": {"inline": True, "drain_timeout_s": 7.0}, "pools": pools})


def test_an_inline_worker_is_the_first_of_all_and_lives_in_the_controllers_program() -> None:
    controller, _, second = programs(inline(a={"workers": 2, "cores": 3}), MACHINE, None)

    told = load_settings(environ=dict(controller.env)).worker
    assert (told.inline, told.id, told.pool) == (True, "a-1", "a")
    assert controller.worker == "worker-a-1 (in the controller's process)"
    assert controller.argv[-1] == "controller"
    assert controller.stop_timeout_s > programs(Settings(), MACHINE, None)[0].stop_timeout_s + 7.0 - 1e-9

    other = load_settings(environ={"INFAAS_WORKER__INLINE": "true", **second.env}).worker
    assert (second.name, second.worker, other.inline, other.id) == ("worker-a-2", "worker-a-2", False, "a-2")


def test_without_any_worker_none_can_be_inline() -> None:
    with pytest.raises(SettingsError, match=r"worker\.inline needs a worker"):
        programs(inline(a={"workers": 0}), MACHINE, None)
