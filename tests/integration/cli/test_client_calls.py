from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infaas.client import Client, QueryError, Requirements, Served
from infaas.domain.query import Code
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.errors import InvalidError, NotFoundError, UnauthenticatedError, UnavailableError

IMAGE = np.array([[1.5, -2.0, 0.0, 4.0]], np.float32)


@pytest.mark.parametrize("is_binary", [True, False])
def test_arrays_go_out_and_come_back_with_what_the_headers_say(controller: Any, is_binary: bool) -> None:
    with Client(controller.url) as client:
        answer = client.infer(
            "digits",
            {"image": IMAGE},
            Requirements(slo_latency_ms=50, slo_accuracy_min=0.9, objective="accuracy", fallback=True, explain=True),
            is_binary=is_binary,
            request_id="r-9",
        )

    np.testing.assert_array_equal(answer.outputs["scores"], IMAGE)
    assert (answer.model, answer.version) == ("digits", "1")
    assert answer.served == Served(
        request_id="r-1",
        decision_id="d-1",
        variant="cnn.v1.ort-fp32-t1",
        worker="local-1",
        slo_met=True,
        attempts=1,
        queue_ms=0.12,
    )
    sent = controller.last()[2]
    assert {name: value for name, value in sent.items() if name.startswith("x-")} == {
        "x-infaas-slo-latency-ms": "50",
        "x-infaas-slo-accuracy-min": "0.9",
        "x-infaas-objective": "accuracy",
        "x-infaas-fallback": "allow",
        "x-infaas-explain": "true",
        "x-request-id": "r-9",
    }


def test_a_version_and_a_name_with_odd_characters_stay_one_path_segment(controller: Any) -> None:
    with Client(controller.url) as client:
        assert client.infer("digits", {"image": IMAGE}, version="3").version == "3"
        with pytest.raises(NotFoundError):
            client.task("../models")
    assert controller.last()[1].startswith("/v1/tasks/")


def test_a_refused_query_carries_code_text_and_decision(controller: Any) -> None:
    with Client(controller.url) as client, pytest.raises(QueryError) as caught:
        client.infer("digits", {"image": IMAGE}, Requirements(slo_latency_ms=0.001))

    assert caught.value.code is Code.SLO_UNSATISFIABLE
    assert caught.value.text == "no variant answers within 0.001 ms; the nearest needs 1.5 ms"
    assert caught.value.served.decision_id == "d-1"


def test_control_plane_errors_are_ours(controller: Any) -> None:
    with Client(controller.url) as client:
        with pytest.raises(NotFoundError, match="no task 'x'"):
            client.task("x")
        controller.token = "secret"
        with pytest.raises(UnauthenticatedError):
            client.tasks()
    with Client(controller.url, "secret") as client:
        assert [one.task.name for one in client.tasks()] == ["digits"]


def test_nobody_there_is_unavailable_with_the_next_step() -> None:
    with Client("http://127.0.0.1:1") as client:
        with pytest.raises(UnavailableError, match="`infaas up` starts one"):
            client.tasks()
        assert not client.is_ready()


def test_a_registration_is_one_multipart_upload(controller: Any, tmp_path: Path) -> None:
    model, data = tmp_path / "m.onnx", tmp_path / "eval.npz"
    model.write_bytes(b"onnx")
    data.write_bytes(b"npz")

    with Client(controller.url) as client:
        document = client.register(
            model,
            task="digits",
            evaluation=data,
            name="cnn",
            renames=["X=image", "Y=scores"],
            labels=["a=b"],
            accuracy=0.5,
            idempotency_key="k",
        )

    assert (document.model, document.version, document.is_new) == ("cnn", 1, True)
    _, _, headers, form = controller.last()
    assert headers["idempotency-key"] == "k"
    assert form == {
        "file": ("m.onnx", b"onnx"),
        "eval": ("eval.npz", b"npz"),
        "task": "digits",
        "name": "cnn",
        "map": ["X=image", "Y=scores"],
        "label": "a=b",
        "accuracy": "0.5",
    }


def test_all_problems_of_a_registration_come_back(controller: Any, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"onnx")
    with Client(controller.url) as client:
        with pytest.raises(InvalidError) as caught:
            client.register(model, task="wrong")
        assert len(caught.value.problems) == 2
        with pytest.raises(InvalidError, match="cannot be read"):
            client.register(tmp_path / "none.onnx", task="digits")


def test_a_build_is_watched_to_its_end(controller: Any) -> None:
    controller.progress = ["transforming", "profiling"]
    with Client(controller.url) as client:
        seen = [(one.state, one.progress[0].stage) for one in client.watch_build("cnn", 1)]
    assert seen == [("BUILDING", "transforming"), ("BUILDING", "profiling"), ("READY", "done")]


def test_the_other_calls_reach_their_paths(controller: Any) -> None:
    with Client(controller.url) as client:
        client.create_task(Task("t", (TensorSpec("x", Datatype.FP32, (-1, 2)),), ()))
        client.set_task("digits", {"defaults": {"max_cost": None}})
        assert controller.last()[3] == {"defaults": {"max_cost": None}}
        client.rollback("cnn")
        assert controller.last()[3] == {}
        client.rollback("cnn", 2)
        assert controller.last()[3] == {"to": 2}
        client.unregister("cnn")
        client.variants(task="digits", model="cnn")
        client.disable_variant("v")
        client.enable_variant("v")
        client.drain_worker("w")
        client.resume_worker("w")
        client.worker("w")
        client.decisions(5)
        client.autoscaler()
        client.scaling_steps(5, worker="w", variant="v")
    assert [f"{method} {path}" for method, path, _, _ in controller.requests] == [
        "POST /v1/tasks",
        "PATCH /v1/tasks/digits",
        "POST /v1/models/cnn/rollback",
        "POST /v1/models/cnn/rollback",
        "DELETE /v1/models/cnn",
        "GET /v1/variants?task=digits&model=cnn",
        "POST /v1/variants/v/disable",
        "POST /v1/variants/v/enable",
        "POST /v1/workers/w/drain",
        "POST /v1/workers/w/resume",
        "GET /v1/workers/w",
        "GET /v1/decisions?limit=5",
        "GET /v1/autoscaler",
        "GET /v1/autoscaler/decisions?limit=5&worker=w&variant=v",
    ]


def test_a_client_is_not_led_astray_by_a_proxy_in_the_environment(
    controller: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with Client(controller.url) as client:
        assert client.is_ready()


def test_an_answer_from_something_else_is_said_to_be_that(controller: Any) -> None:
    with Client(controller.url) as client, pytest.raises(NotFoundError, match="HTTP 404"):
        client.server()


def test_npz_bytes_are_read_from_where_the_path_points(controller: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, image=IMAGE)
    (tmp_path / "e.npz").write_bytes(buffer.getvalue())
    (tmp_path / "m.onnx").write_bytes(b"onnx")
    with Client(controller.url) as client:
        client.register(tmp_path / "m.onnx", task="digits", evaluation=tmp_path / "e.npz")
    assert controller.last()[3]["eval"] == ("e.npz", buffer.getvalue())
