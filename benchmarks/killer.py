"""The random killer: for minutes, parts of a cluster under load are killed, stopped and cut off at random, and healed.

python benchmarks/killer.py [--seconds 600] [--every 4] [--seed 1] [--rate 40] [--deadline 2.0]

Two controllers, two workers behind links that can be cut, a generator, a fleet of the provider `local` that keeps one
worker more at least, model autoscalers, a Redis of their own. What is done is told by the seed
(`infaas.testing.killer`). Callers send on a Poisson schedule and try once more on the other controller. At the end all
is healed, and nothing may be left (`infaas.testing.leftovers`): the store, each controller's view and what workers say
of themselves agree, nothing is LOADING or DRAINING, no intent is without its machine or the other way round, no lease
is held but by who leads, gauges are what is live, and queries are answered by both controllers. Exit status 1 when
something is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from faults import prepared

from infaas.testing.killer import Hunt, answers, cluster_with_fleet, hunt, plan_wounds
from infaas.testing.load import Outcome

MODEL = "digits-cnn-medium"


def told(hunted: Hunt, after: Outcome) -> str:
    by_target: dict[str, Counter[str]] = {}
    for wound, _, _ in hunted.suffered:
        by_target.setdefault(wound.target, Counter())[wound.kind] += 1
    lines = ["| part | wounds |", "|--|--|"]
    for target, kinds in sorted(by_target.items()):
        lines.append(f"| {target} | {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))} |")
    outcome = hunted.outcome
    total, failed = len(outcome.shots), outcome.failed.total()
    codes = ", ".join(f"{count} {code}" for code, count in outcome.failed.most_common()) or "none"
    lines += [
        "",
        f"{total} queries, {failed} not answered ({failed / max(total, 1):.2%}): {codes}; {outcome.retried} asked the "
        "other controller",
        f"{outcome.hung} callers hung, {hunted.hung} of them while no controller stood still",
        f"nothing was left {hunted.at_rest_after_s:.1f} s after the last query; then {len(after.shots)} queries, "
        f"{after.failed.total()} not answered",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between wounds, on average")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=40.0, help="queries per second")
    parser.add_argument("--rows", type=int, default=4, help="of a query")
    parser.add_argument("--deadline", type=float, default=2.0)
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="infaas-", ignore_cleanup_errors=True) as folder,
        cluster_with_fleet(Path(folder)) as cluster,
    ):
        cluster.register(MODEL)
        queries = prepared(options.rows, options.deadline)
        answers(cluster, queries)
        wounds = plan_wounds(options.seed, options.seconds, cluster.controllers, cluster.workers, every_s=options.every)
        print(
            f"{len(wounds)} wounds in {options.seconds:.0f} s, seed {options.seed}; {options.rate:g} queries/s of "
            f"{options.rows} rows, deadline {options.deadline:g} s",
            flush=True,
        )
        try:
            found = hunt(cluster, wounds, queries, rate=options.rate, deadline_s=options.deadline, seed=options.seed)
        except TimeoutError as error:
            logs = "\n".join(f"-- {name}\n{cluster.log(name)[-4000:]}" for name in cluster.names)
            print(f"broken: {error}\n{logs}")
            return 1
        after = answers(cluster, queries)
    print(told(found, after))
    return 1 if found.hung or after.failed else 0


if __name__ == "__main__":
    sys.exit(main())
