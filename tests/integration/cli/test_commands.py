from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from infaas.cli import builds
from infaas.cli.app import app
from infaas.settings import json_schema

FAST = "cnn.v1.ort-fp32-t1"

Run = Callable[..., Result]


@pytest.fixture
def run(controller: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("INFAAS_URL", controller.url)
    monkeypatch.setenv("INFAAS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("INFAAS_TOKEN", raising=False)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.npz"
    np.savez(file, image=np.arange(12, dtype=np.float64).reshape(3, 4), label=np.arange(3))
    return file


@pytest.mark.parametrize(
    "command",
    [
        "task list",
        "task describe digits",
        "task create t --input x:FP32[-1,4] --result y:FP32[-1,2] --classes a,b",
        "task set digits --slo-latency 20 --fallback allow --max-cost none",
        "model list",
        "model describe cnn",
        "model versions cnn",
        "model status cnn",
        "model status cnn -w",
        "model rollback cnn",
        "model unregister cnn",
        "variant list",
        "variant describe v",
        "variant disable v",
        "variant enable v",
        "worker list",
        "worker describe local-1",
        "worker drain local-1",
        "worker resume local-1",
        "autoscaler status",
        "autoscaler history --worker local-1 -n 5",
        "explain d-1",
    ],
)
def test_every_command_prints_a_table_json_and_yaml_and_the_next_step(run: Run, command: str) -> None:
    table, as_json, as_yaml = (run(*command.split(), *more) for more in ([], ["-o", "json"], ["-o", "yaml"]))

    assert (table.exit_code, as_json.exit_code, as_yaml.exit_code) == (0, 0, 0), table.output + as_json.output
    assert "Next: infaas " in table.stdout
    assert json.loads(as_json.stdout) == yaml.safe_load(as_yaml.stdout)
    assert "Next: infaas " in as_json.stderr


def test_the_variant_list_marks_the_frontier_and_names_who_dominates(run: Run) -> None:
    lines = run("variant", "list").stdout.splitlines()

    frontier = next(line for line in lines if "ort-fp32-t1" in line and line.startswith("*"))
    assert "98.0% ±1.0" in frontier
    dominated = next(line for line in lines if "ort-int8-t1" in line)
    assert not dominated.startswith("*")
    assert dominated.rstrip().endswith("cnn.v1.ort-fp32-t1")


@pytest.mark.parametrize(
    ("worker", "said"),
    [
        ("local-1", "5 large inputs, 4 large outputs; 2 found it full"),
        ("far-1", "not used: the connection is not a unix socket"),
    ],
)
def test_a_worker_tells_what_went_through_shared_memory_or_why_nothing_does(run: Run, worker: str, said: str) -> None:
    rows = run("worker", "describe", worker).stdout.splitlines()

    (row,) = (row for row in rows if row.startswith("shared memory"))
    assert row.removeprefix("shared memory").strip() == said


def test_scaling_is_shown_with_how_busy_and_why(run: Run, controller: Any) -> None:
    (row,) = (line for line in run("autoscaler", "status").stdout.splitlines() if FAST in line)
    assert row.split() == ["local-1", "on", FAST, "1", "1", "0.93"]
    (off,) = (line for line in run("autoscaler", "status").stdout.splitlines() if line.startswith("far-1"))
    assert off.split() == ["far-1", "off", "-", "-", "-", "-"]
    output = run("autoscaler", "history", "--variant", FAST).stdout
    assert f"/v1/autoscaler/decisions?limit=50&variant={FAST}" in [request[1] for request in controller.requests]
    (row,) = (line for line in output.splitlines() if "replicate" in line)
    assert "0.93 of 1 run on average" in row


def test_the_fleet_is_shown_with_its_pools_what_is_wanted_and_what_was_done(run: Run) -> None:
    lines = run("autoscaler", "status").stdout.splitlines()
    (row,) = (line for line in lines if line.startswith("small"))
    assert row.split() == ["small", "1", "1", "4", "2", "0", "0", "1", "0", "2", "0.04"]
    assert (
        "work 1.50 cores, wanted 2.1 cores, there 2; 0.12 USD/h of at most 0.2 (local, by c-1 at "
        "2026-01-01T00:00:00.000Z)"
    ) in lines
    history = run("autoscaler", "history").stdout
    assert "2.1 cores are wanted of 1" in history
    assert f"{FAST}: it is busy" in history
    of_variant = json.loads(run("autoscaler", "history", "--variant", FAST, "-o", "json").stdout)
    assert [step["action"] for step in of_variant["fleet"]] == ["load"]
    of_worker = json.loads(run("autoscaler", "history", "--worker", "small-2", "-o", "json").stdout)
    assert [step["action"] for step in of_worker["fleet"]] == ["load", "add"]


def test_a_fleet_that_cannot_be_shown_hides_nothing_else_and_says_why(run: Run, controller: Any) -> None:
    controller.has_no_fleet_leader = True
    status, history = run("autoscaler", "status").stdout, run("autoscaler", "history").stdout
    assert FAST in status
    assert "The fleet: no controller has looked at the fleet lately" in status
    assert "0.93 of 1 run on average" in history
    assert "The fleet: the store cannot be reached" in history
    found = json.loads(run("autoscaler", "status", "-o", "json").stdout)
    assert (found["fleet"], found["fleet_trouble"]) == (None, "no controller has looked at the fleet lately")


def test_explain_shows_the_chosen_one_first_and_the_others_with_reasons(run: Run) -> None:
    output = run("explain", "r-1").stdout

    assert "cheapest of 1 that meets all" in output
    rows = [line for line in output.splitlines() if "ort-" in line and "served by" not in line]
    assert rows[0].startswith("→")
    assert "accuracy 0.910 is below the floor 0.960" in rows[1]


def test_task_set_sends_what_is_stated_and_takes_back_none(run: Run, controller: Any) -> None:
    run("task", "set", "digits", "--slo-latency", "20", "--fallback", "deny", "--max-cost", "none")

    assert controller.last()[3] == {"defaults": {"slo_latency_ms": 20.0, "max_cost": None, "fallback": False}}


def test_a_registration_waits_for_its_variants(run: Run, controller: Any, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"onnx")

    done = run("model", "register", tmp_path / "m.onnx", "--task", "digits", "--map", "X=image", "--accuracy", "0.5")

    assert done.exit_code == 0, done.output
    assert "Created task digits" in done.stdout
    assert "ort-fp32-t1: done" in done.stdout
    assert "cnn version 1 serves with 2 variants." in done.stdout
    assert "Next: infaas infer digits" in done.stdout


def test_a_registration_waits_until_queries_here_know_it(run: Run, controller: Any, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"onnx")
    controller.behind = 3

    done = run("model", "register", tmp_path / "m.onnx", "--task", "digits")

    assert "cnn version 1 serves with 2 variants." in done.stdout
    assert controller.behind < 0


def test_a_registration_that_queries_do_not_follow_says_so(
    run: Run, controller: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"onnx")
    monkeypatch.setattr(builds, "SERVING_WITHIN_S", 0.3)
    controller.behind = 10_000

    done = run("model", "register", tmp_path / "m.onnx", "--task", "digits")

    assert done.exit_code == 0, done.output
    assert "cnn version 1 is ready (no version serves here yet) with 2 variants." in done.stdout


def test_a_detached_registration_returns_at_once(run: Run, controller: Any, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"onnx")

    done = run("model", "register", tmp_path / "m.onnx", "--task", "digits", "--detach", "-o", "json")

    assert json.loads(done.stdout)["location"] == "/v1/models/cnn/versions/1"
    assert controller.last()[:2] == ("POST", "/v1/models")


def test_a_failed_build_is_a_failed_command(run: Run, controller: Any, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"onnx")
    controller.build_state = "FAILED"

    done = run("model", "register", tmp_path / "m.onnx", "--task", "digits")

    assert done.exit_code == 1
    assert "error (model-failed): cnn version 1 is FAILED" in done.stderr
    assert "OUTCOME" in done.stdout


def test_every_problem_of_a_registration_is_a_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"onnx")

    done = run("model", "register", tmp_path / "m.onnx", "--task", "wrong")

    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        "error (invalid-argument): 2 problems",
        "  - input 'x' is not in the task",
        "  - output 'y' has shape [1], [-1, 4] is wanted",
    ]


def test_an_npz_gives_one_row_and_is_cast_to_the_model_s_datatype(run: Run, data: Path) -> None:
    done = run("infer", "digits", data, "--slo-latency", "50", "--show-headers", "--explain", "-o", "json")

    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [1, 4], "data": [0, 1, 2, 3]}]
    assert document["served"]["variant"] == "cnn.v1.ort-fp32-t1"
    assert "x-infaas-decision-id: d-1" in done.stderr
    assert "Next: infaas explain d-1" in done.stderr


def test_an_inline_input_gets_its_batch_dimension(run: Run) -> None:
    done = run("infer", "digits", "--input", "image=[1,2,3,4]", "--explain")

    assert done.exit_code == 0, done.output
    assert "1 2 3 4" in done.stdout
    assert "Served by cnn.v1.ort-fp32-t1 (version 1) on local-1" in done.stdout
    assert "CANDIDATE" in done.stdout


def test_a_request_in_json_is_taken_as_it_is(run: Run, tmp_path: Path) -> None:
    tensor = {"name": "image", "datatype": "FP32", "shape": [2, 4], "data": list(range(8))}
    (tmp_path / "q.json").write_text(json.dumps({"inputs": [tensor]}))

    done = run("infer", "digits", tmp_path / "q.json", "-o", "json")

    assert json.loads(done.stdout)["outputs"][0]["shape"] == [2, 4]


def test_many_queries_end_in_a_summary(run: Run, controller: Any, data: Path) -> None:
    done = run("infer", "digits", data, "-n", "5", "--batch", "2", "-o", "json")

    summary = json.loads(done.stdout)
    assert (summary["queries"], summary["answered"], summary["errors"]) == (5, 5, {})
    assert summary["variants"] == {"cnn.v1.ort-fp32-t1": 5}
    assert sum("/infer" in path for _, path, _, _ in controller.requests) == 5


def test_a_refusal_is_one_line_with_the_way_to_its_reasons(run: Run, data: Path) -> None:
    done = run("infer", "digits", data, "--slo-latency", "0.001")

    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        "Next: infaas explain d-1",
        "error (slo-unsatisfiable): no variant answers within 0.001 ms; the nearest needs 1.5 ms",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "image"], "must be NAME=JSON"),
        (["--input", "image=[1,"], "is not JSON"),
        (["--input", "image=[[1,2],[3]]"], "not a regular array"),
        (["--input", "image=[[[1]]]"], "has shape [1, 1, 1]; [-1, 4] is wanted"),
        (["--input", 'image=["x","y","z","w"]'], "do not fit FP32"),
        (["--input", "other=[1]"], "no value for input image; the inputs are image (FP32 [-1, 4])"),
        (["nothing.npz"], "cannot be read as npz"),
        (["data.txt"], "inputs are .npz, .npy or .json files"),
    ],
)
def test_a_wrong_input_is_explained(run: Run, words: list[str], message: str) -> None:
    done = run("infer", "digits", *words)

    assert done.exit_code == 1
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_the_token_comes_from_a_file_or_the_environment(
    run: Run, controller: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.token = "s3cret"
    (tmp_path / "token").write_text("s3cret\n")

    assert run("task", "list").stderr == "error (unauthenticated): no or wrong token\n"
    assert run("task", "list", "--token-file", tmp_path / "token").exit_code == 0
    for value in ("s3cret", "s3cret\nanother\n"):
        monkeypatch.setenv("INFAAS_TOKEN", value)
        assert run("task", "list").exit_code == 0


def test_the_local_system_is_found_by_its_announcement(
    run: Run, controller: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.delenv("INFAAS_URL")
    (tmp_path / "state" / "run").mkdir(parents=True)
    announcement = {"pid": os.getpid(), "host": "127.0.0.1", "grpc_port": 1, "metrics_port": 2}
    announcement["http_port"] = int(controller.url.rsplit(":", 1)[1])
    (tmp_path / "state" / "run" / "controller.json").write_text(json.dumps(announcement))

    assert run("task", "list").exit_code == 0


def test_status_of_nothing_says_how_to_start_and_fails(run: Run) -> None:
    done = run("status", "-o", "json")

    assert done.exit_code == 1
    assert json.loads(done.stdout)["state"] == "down"
    assert "Next: infaas up" in done.stderr


def test_down_without_a_system_is_one_line(run: Run) -> None:
    done = run("down")

    assert done.exit_code == 1
    assert done.stderr.startswith("error (not-found): nothing is up in ")


def test_config_commands_validate_show_and_publish_the_schema(run: Run, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("controller: {http_port: 9000}\nauth: {token: hush}\n")
    bad.write_text("controller: {htp_port: 9000}\nstrange: 1\n")

    assert run("config", "validate", good).stdout.startswith(f"{good} is valid")
    refused = run("config", "validate", bad)
    assert refused.exit_code == 1
    assert "unknown setting 'controller.htp_port'" in refused.stderr
    assert "unknown setting 'strange'" in refused.stderr
    shown = run("config", "show", "--config", good)
    assert yaml.safe_load(shown.stdout)["controller"]["http_port"] == 9000
    assert "hush" not in shown.stdout
    assert json.loads(run("config", "schema").stdout) == json_schema()


def test_doctor_names_every_check_and_fails_when_one_does(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("controller: {http_port: 0, grpc_port: 0, metrics_port: 0}\n")
    fine = run("doctor", "--config", config, "-o", "json")
    findings = {one["check"]: one for one in json.loads(fine.stdout)["findings"]}
    assert set(findings) >= {
        "python",
        "packages",
        "redis",
        "ports",
        "state folder",
        "space",
        "memory",
        "cores",
        "clock",
    }
    assert fine.exit_code == 0, fine.output

    monkeypatch.setenv("INFAAS_REDIS_SERVER", "/nowhere/redis-server")
    ill = run("doctor", "--config", config)
    assert ill.exit_code == 1
    line = next(line for line in ill.stdout.splitlines() if line.startswith("FAIL"))
    assert "redis" in line
    assert "/nowhere/redis-server" in line


@pytest.mark.parametrize(
    ("words", "wrong", "usage"),
    [
        (("infer",), "error: missing argument 'handle'", "usage: infaas infer [OPTIONS] {handle} [file] (-h explains)"),
        (("variant", "describe", "--nope"), "error: no such option: --nope", "usage: infaas variant describe "),
        (("model", "register", "m.onnx"), "error: missing option '--task'", "usage: infaas model register "),
        (
            ("variant", "profile", "v", "--budget", "x"),
            "error: invalid value for '--budget': ",
            "usage: infaas variant ",
        ),
        (("modle",), "error: no such command 'modle'", "usage: infaas [OPTIONS] COMMAND"),
    ],
)
def test_a_usage_error_is_one_line_and_the_usage(run: Run, words: tuple[str, ...], wrong: str, usage: str) -> None:
    done = run(*words)

    assert done.exit_code == 2
    first, second = done.stderr.splitlines()
    assert first.startswith(wrong)
    assert second.startswith(usage)
    assert done.stdout == ""


def test_a_group_without_a_command_shows_its_help(run: Run) -> None:
    done = run("variant")

    assert done.exit_code == 2
    assert "Commands:" in done.output
    assert "error:" not in done.output


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from infaas.cli import main\n"
        "sys.argv = ['infaas', '--help']\n"
        "try:\n    main()\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'httpx', 'pydantic', 'grpc', 'fastapi', 'rich', 'yaml', 'msgspec'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert "infer" in done.stdout


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").stdout == "infaas 0.1.0\n"


def test_the_catalogues_tables_are_shown_and_taken_back_and_forth(run: Run, tmp_path: Path) -> None:
    settings = tmp_path / "infaas.yaml"
    settings.write_text(f"catalog: {{database_url: 'sqlite:///{tmp_path}/catalog.db'}}\n")
    document = json.loads(run("catalog", "status", "--config", settings, "-o", "json").stdout)
    assert document["revision"] is None
    first, *_, newest = document["known"]

    assert f"have revision {newest}" in run("catalog", "migrate", "--config", settings).stdout
    assert f"have revision {first}" in run("catalog", "migrate", first, "--config", settings).stdout
    assert json.loads(run("catalog", "status", "--config", settings, "-o", "json").stdout)["revision"] == first
    refused = run("catalog", "migrate", "nonsense", "--config", settings)
    assert refused.exit_code == 1
    assert newest in refused.stderr
