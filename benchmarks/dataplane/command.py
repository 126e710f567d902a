"""The command line: which questions, against whom, how long; tables on standard output, data into a file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dataplane.cells import FULL, QUICK, Effort, Run, tell
from dataplane.graphs import MODELS
from dataplane.peers import Kit, versions
from dataplane.servers import pins
from dataplane.tasks import QUESTIONS, Answer

ALL = "all"
PEERS = ("fastapi", "mosec", "triton", "grpc")
PEERS_OF = {"overload": ("fastapi", "mosec", "triton"), "latency": ("fastapi", "grpc"), "limits": (), "select": ()}
"""Those that a question is asked of when none are named; else all."""
ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv" / "peers"

DESCRIPTION = """\
The data plane, measured against peers and limits of the same run.

  throughput  answers/s and processor time per query, small MLP, 32 connections; ratios to bare FastAPI
  limits      share of the best offline batch throughput: wide MLP, 1 ms CNN, ResNet-18
  latency     added over ONNX Runtime in process, one connection, REST and gRPC
  overload    answers on time at 0.8 to 5 times capacity with a 100 ms deadline; refusals; return to normal
  select      what a decision costs by the size of the cluster
  all         these, one after the other

The servers run on the first core that this process may use and the load on the second, unless --shared.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    asked = list(QUESTIONS) if chosen.question == ALL else [chosen.question]
    effort = QUICK if chosen.quick else FULL
    where = pins(is_shared=chosen.shared)
    with tempfile.TemporaryDirectory(prefix="infaas-dataplane-") as folder:
        kit = Kit(where, Path(folder), chosen.peers_venv)
        where.for_generator()
        answers: dict[str, Answer] = {}
        for question in asked:
            tell(f"— {question}")
            peers = PEERS_OF.get(question, PEERS) if chosen.peers is None else chosen.peers
            more: dict[str, Any] = {}
            if chosen.models and question in ("limits", "latency", "overload"):
                more["models"] = [MODELS[name] for name in chosen.models]
            if chosen.multiples and question == "overload":
                more["multiples"] = chosen.multiples
            run = Run(kit, _with(effort, chosen), peers, has_crowd=chosen.crowd)
            answers[question] = QUESTIONS[question](run, **more)
            print(_text(answers[question]), flush=True)
            if chosen.json is not None:  # after each, so that what is known is not lost with what fails
                chosen.json.write_text(json.dumps(_data(answers, chosen), indent=1, default=float) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=[*QUESTIONS, ALL])
    parser.add_argument("--quick", action="store_true", help="one short round: that it works, not how fast")
    parser.add_argument("--shared", action="store_true", help="nothing is pinned: servers and load share the cores")
    parser.add_argument("--rounds", type=int, help="interleaved; the tables have their medians (3)")
    parser.add_argument("--seconds", type=float, help="of each cell's window (5)")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="against whom; none: INFaaS alone")
    parser.add_argument("--models", nargs="*", choices=sorted(MODELS), help="of limits, latency, overload")
    parser.add_argument("--multiples", nargs="*", type=float, help="of overload: of each one's capacity")
    parser.add_argument("--crowd", action="store_true", help="the demo's family of models is registered beside")
    parser.add_argument("--peers-venv", type=Path, default=ENVIRONMENT, help="made when it is not there")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    return parser


def _with(effort: Effort, chosen: argparse.Namespace) -> Effort:
    changes = {"rounds": chosen.rounds, "seconds": chosen.seconds}
    return replace(effort, **{name: value for name, value in changes.items() if value is not None})


def _text(answer: Answer) -> str:
    missing = [f"left out: {one.name}: {one.why}" for one in answer.left_out]
    return "\n".join(["", f"## {answer.title}", "", answer.table, *missing, ""])


def _data(answers: dict[str, Answer], chosen: argparse.Namespace) -> dict[str, Any]:
    return {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "python": sys.version.split()[0],
        "peers": versions(chosen.peers_venv),
        "is_shared": chosen.shared,
        "is_quick": chosen.quick,
        **{
            name: {"title": answer.title, "figures": answer.data, "left_out": [asdict(one) for one in answer.left_out]}
            for name, answer in answers.items()
        },
    }
