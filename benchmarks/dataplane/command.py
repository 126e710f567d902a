"""The command line: which questions, against whom, how long; tables on standard output, files into a folder."""

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
from dataplane.environments import versions
from dataplane.graphs import MODELS
from dataplane.native_load import LOAD, CannotBuildError, NativeLoad, built
from dataplane.own import LEAST_VARIANTS
from dataplane.peers import NAMES, Kit
from dataplane.questions import QUESTIONS
from dataplane.questions.answer import Answer
from dataplane.servers import pins

ALL = "all"
PEERS = tuple(name for name in NAMES if name != "null")
PEERS_OF = {
    "peers": tuple(name for name in PEERS if name != "bare"),
    "batching": ("bare",),
    "gateway": ("fastapi", "grpc"),
    "overload": ("fastapi", "mosec", "mlserver", "ray", "triton"),
}
"""Of whom a question is asked when nobody is named."""
WITH_MODELS = ("batching", "gateway", "overload")
ROOT = Path(__file__).resolve().parents[2]
CACHE, RESULTS = ROOT / ".venv" / "benchmarks", ROOT / "benchmark-results"

DESCRIPTION = """\
The data plane, measured against peers and limits of the same run.

  decision  what a decision costs, from 10 to 10,000 instances
  gateway   latency and processor time added over ONNX Runtime in process, by program; four models
  batching  share of the best offline batch throughput: wide MLP, 1 ms CNN, ResNet-18; a bare loop beside it
  overload  answers on time at 0.5 to 5 times capacity with a 100 ms deadline; refusals; return to normal
  peers     answers/s and processor time per query, small MLP, 32 connections; ratios to bare FastAPI
  soak      ten minutes with cancelled and malformed queries: memory, descriptors, tasks, gauges
  flame     what the programs were doing whenever somebody looked, small MLP, 32 connections
  all       these, one after the other

Each prints a table and leaves QUESTION.json, QUESTION.md and QUESTION-*.svg in a folder. The servers run on the first
core that this process may use and the load on the second, unless --shared.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    asked = list(QUESTIONS) if chosen.question == ALL else [chosen.question]
    where = pins(is_shared=chosen.shared)
    chosen.into.mkdir(parents=True, exist_ok=True)
    is_kept = True
    with tempfile.TemporaryDirectory(prefix="infaas-dataplane-") as folder:
        kit = Kit(where, Path(folder), chosen.cache)
        load = _load(chosen)
        where.for_generator()
        for question in asked:
            tell(f"— {question}")
            run = Run(
                kit, _effort(chosen), PEERS_OF.get(question, ()) if chosen.peers is None else chosen.peers, load,
                chosen.variants, dict(chosen.set),
            )  # fmt: skip
            answer = QUESTIONS[question](run, **_more(question, chosen))
            is_kept = is_kept and answer.is_kept
            print(_text(answer), flush=True)
            _write(question, answer, chosen)  # at once, so that what is known is not lost with what fails
    return 0 if is_kept else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=[*QUESTIONS, ALL])
    parser.add_argument("--quick", action="store_true", help="one short round: that it works, not how fast")
    parser.add_argument("--shared", action="store_true", help="nothing is pinned: servers and load share the cores")
    parser.add_argument("--rounds", type=int, help="interleaved; the tables have their medians (3)")
    parser.add_argument("--seconds", type=float, help="of each cell's window (5)")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="against whom; none: INFaaS alone")
    parser.add_argument("--models", nargs="*", choices=sorted(MODELS), help=f"of {', '.join(WITH_MODELS)}")
    parser.add_argument("--multiples", nargs="*", type=float, help="of overload: of each one's capacity")
    parser.add_argument(
        "--set", action="append", type=setting, default=[], metavar="KEY=VALUE",
        help="a setting of the system, such as controller.processes=2; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--variants", type=int, default=LEAST_VARIANTS, metavar="N",
        help=f"registered at least, by models of the demo beside those that are measured ({LEAST_VARIANTS})",
    )  # fmt: skip
    parser.add_argument(
        "--generator", choices=("c", "python"), default="c", help="of the load over REST; c is built by cc (c)"
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="for peers' environments and built programs")
    parser.add_argument("--into", type=Path, default=RESULTS, metavar="FOLDER", help=f"for files ({RESULTS.name})")
    return parser


def setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _load(chosen: argparse.Namespace) -> NativeLoad | None:
    """Raises SystemExit when it cannot be built: figures of the other one are others."""
    if chosen.generator == "python":
        return None
    try:
        return NativeLoad(built(LOAD, chosen.cache))
    except CannotBuildError as error:
        raise SystemExit(f"{error}; --generator python does without") from error


def _effort(chosen: argparse.Namespace) -> Effort:
    changes = {"rounds": chosen.rounds, "seconds": chosen.seconds}
    asked = {name: value for name, value in changes.items() if value is not None}
    return replace(QUICK if chosen.quick else FULL, **asked)


def _more(question: str, chosen: argparse.Namespace) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if chosen.models and question in WITH_MODELS:
        more["models"] = [MODELS[name] for name in chosen.models]
    if chosen.multiples and question == "overload":
        more["multiples"] = chosen.multiples
    return more


def _text(answer: Answer) -> str:
    missing = [f"left out: {one.name}: {one.why}" for one in answer.left_out]
    return "\n".join(["", f"## {answer.title}", "", answer.table, *missing, ""])


def _write(question: str, answer: Answer, chosen: argparse.Namespace) -> None:
    data = {
        "title": answer.title,
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "python": f"{sys.executable} {sys.version}",
        "peers": versions(chosen.cache),
        "generator": chosen.generator,
        "settings": dict(chosen.set),
        "is_shared": chosen.shared,
        "is_quick": chosen.quick,
        "left_out": [asdict(one) for one in answer.left_out],
        "figures": answer.data,
    }
    (chosen.into / f"{question}.json").write_text(json.dumps(data, indent=1, default=float) + "\n")
    (chosen.into / f"{question}.md").write_text(_text(answer))
    for name, drawn in answer.charts.items():
        (chosen.into / f"{question}-{name}.svg").write_bytes(drawn)
