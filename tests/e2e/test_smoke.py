"""The main job in its shortest form, by the command line alone: up, register, ask, explain, down."""

from __future__ import annotations

import numpy as np
from running_system import SIMPLE_TASK, System, member

from infaas.demo import family


def test_up_register_infer_explain_and_down(quick_system: System) -> None:
    system = quick_system
    digits, simple = system.register(member("digits-mlp"), "--detach"), system.register_simple("--detach")
    assert "digits-mlp version 1" in digits
    assert "Created task simple" in simple
    assert "digits-mlp version 1 serves" in system.infaas("model", "status", "digits-mlp", "--watch")
    assert "simple-sum version 1 serves" in system.infaas("model", "status", "simple-sum", "--watch")

    with np.load(family.path(family.SIMPLE_EVAL_FILE), allow_pickle=False) as data:
        expected = data["OUTPUT0"][0].tolist()
    asked = ("infer", SIMPLE_TASK, family.path(family.SIMPLE_EVAL_FILE))
    for protocol in ("rest", "grpc"):
        answer = system.json(*asked, "--protocol", protocol)
        assert answer["outputs"][0]["data"] == expected, protocol

    scan = ("infer", "digits", family.path(family.EVAL_FILE))
    requirements = ("--slo-latency", "5000", "--slo-accuracy", "0.9")
    answer = system.json(*scan, *requirements)
    assert answer["served"]["slo_met"] is True
    assert answer["served"]["variant"].startswith("digits-mlp.v1.")

    decision = system.json("explain", answer["served"]["decision_id"])
    assert decision["outcome"] == "answered"
    assert decision["variant"] == answer["served"]["variant"]
    assert decision["floor"] == 0.9
