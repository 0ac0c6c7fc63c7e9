"""What a run of pytest-forkd spends its time on: `python benchmarks/timeline.py --suite ml`.

A plugin notes when the controller, the collector and the first worker get where; the table has the
medians over all runs, in milliseconds since the run was started. Its hooks would have each worker
collect for itself, so sharing is asked for with --forkd-warm=collection. The first two runs, which
make the parent and learn the durations, are not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict

from environments import Environment, ensure
from layout import HERE, WORK
from processes import clean_environment, run
from report import machine
from runners import RUNNERS
from session import exclusive
from suites import Suite, build, clear_caches, requirements
from tables import markdown_table

LIMIT_S = 120.0
UNCOUNTED = 2
ENDED = ("controller", "process has ended")

Step = tuple[str, str]


def main(arguments: list[str]) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--suite", default="ml", choices=["ml", "tiny", "one_long"])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=9, help="runs that count (default 9)")
    options = parser.parse_args(arguments)
    facts = machine()
    with exclusive() as session:
        suite = build(options.suite, "timeline")
        runner = RUNNERS["forkd"]
        environment = ensure(
            runner.environment, (*runner.requirements, *requirements()), _log, checkout=True
        )
        clear_caches(suite.folder)
        runs = []
        for number in range(options.repeat + UNCOUNTED):
            found = one_run(environment, suite, options.workers, session)
            if number >= UNCOUNTED:
                runs.append(found)
    print(
        f"`{options.suite}`, {options.workers} workers, medians of {len(runs)} runs with a kept "
        f"parent. Python {facts['python']}, {facts['system']}, {facts['cpus']} CPUs.\n"
    )
    print(table(runs))
    return 0


def one_run(
    environment: Environment, suite: Suite, workers: int, session: str
) -> dict[Step, dict[str, float]]:
    """Run once; for each step its time in ms since the start, and what its process had used.

    Of several workers, the first to be forked is followed. Raises SystemExit if the run fails.
    """
    file = WORK / "timeline.jsonl"
    file.unlink(missing_ok=True)
    command = RUNNERS["forkd"].command(environment.python, workers)
    variables = clean_environment(
        f"{session}-timeline",
        suite.folder,
        PYTHONPATH=str(HERE / "recorder"),
        BENCHMARK_TIMELINE=str(file),
    )
    begin = time.time()
    done = run(
        [*command, "-p", "timeline_recorder", "--forkd-warm=collection"],
        suite.folder,
        variables,
        LIMIT_S,
        WORK / "logs" / "timeline.log",
    )
    end = time.time()
    if done.exit_code != 0:
        raise SystemExit(f"the run failed:\n{done.output}")
    found: dict[Step, dict[str, float]] = {}
    for line in file.read_text().splitlines():
        step = json.loads(line)
        step["ms"] = (step["time"] - begin) * 1000
        found.setdefault((step["role"], step["step"]), step)
    found[ENDED] = {"ms": (end - begin) * 1000, "faults": 0, "cpu": 0.0}
    return found


def table(runs: list[dict[Step, dict[str, float]]]) -> str:
    """The medians, in their order, as Markdown."""
    values: dict[Step, list[dict[str, float]]] = defaultdict(list)
    for found in runs:
        for key, value in found.items():
            values[key].append(value)
    rows = []
    for (role, step), each in values.items():
        middle = {
            name: statistics.median(v[name] for v in each) for name in ("ms", "cpu", "faults")
        }
        used = [f"{middle['cpu'] * 1000:.0f}", f"{middle['faults']:.0f}"]
        if (role, step) == ENDED:
            used = ["-", "-"]
        rows.append((middle["ms"], [f"{middle['ms']:.0f}", f"the {role} {step}", *used]))
    rows.sort()
    header = ["ms", "what", "CPU so far, ms", "page faults so far"]
    return markdown_table(header, [row for _ms, row in rows])


def _log(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
