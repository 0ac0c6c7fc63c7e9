"""Measure the time from a worker's death to the next test: `python benchmarks/replacement.py`.

A generated suite imports scikit-learn. Every other test kills its own process; every test first
writes the time, its process id and its worker's name to a file. With one worker the next test
has to run in the replacement, so the time between the two lines is what a crash costs. Times
are of the real-time clock, in nanoseconds in the file and in milliseconds in the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from environments import Environment, InstallError, ensure
from layout import WORK
from measure import last_line, summary_line
from processes import clean_environment, end_processes, marked, run
from report import machine
from runners import RUNNERS, Runner
from session import exclusive
from suites import EMPTY_INI, clear_caches, requirements, write_files
from tables import markdown_table, number

LIMIT_S = 240.0
EVENTS = "events.jsonl"
SUITE = """\
import json
import os
import signal
import time
from pathlib import Path

import pytest
from sklearn.linear_model import LinearRegression

EVENTS = Path(__file__).with_name("events.jsonl")


def note(event):
    line = {"time_ns": time.time_ns(), "event": event, "pid": os.getpid()}
    names = ("PYTEST_XDIST_WORKER", "PYTEST_ZYGOTE_WORKER")
    line["worker"] = next((os.environ[name] for name in names if name in os.environ), "")
    with EVENTS.open("a") as file:
        file.write(json.dumps(line) + "\\n")


@pytest.mark.parametrize("n", range(COUNT))
def test_every_other_one_dies(n):
    note("start")
    assert LinearRegression is not None
    if n % 2 == 0:
        note("death")
        os.kill(os.getpid(), signal.SIGKILL)
"""

# With each runner's own option that lets it replace as many workers as die here.
OPTIONS: dict[str, list[str]] = {
    "forkd": ["--max-worker-restart", "1000"],
    "xdist": ["--max-worker-restart", "1000"],
    "zygote": ["--workers-max-restarts", "1000"],
}


@dataclass
class Result:
    """One runner's delays in milliseconds, and in words what was wrong, if anything."""

    runner: str
    deaths: int
    delays_ms: list[float]
    problem: str = ""


def delays(events: list[dict[str, object]]) -> list[float]:
    """Return the milliseconds from each death to the next test's start in another process."""
    found = []
    for death, following in itertools.pairwise(events):
        moved_on = following["event"] == "start" and following["pid"] != death["pid"]
        if death["event"] == "death" and moved_on:
            found.append((int(str(following["time_ns"])) - int(str(death["time_ns"]))) / 1e6)
    return found


def measure(runner: Runner, environment: Environment, deaths: int, session: str) -> Result:
    """Run the suite once under `runner` with one worker."""
    folder = WORK / "suites" / "replacement"
    (folder / EVENTS).unlink(missing_ok=True)
    text = SUITE.replace("COUNT", str(2 * deaths))
    write_files(folder, {"test_dies.py": text.encode(), "pytest.ini": EMPTY_INI.encode()})
    mark = f"{session}-{runner.name}"
    done = run(
        [*runner.command(environment.python, 1), *OPTIONS[runner.name]],
        folder,
        clean_environment(mark, folder),
        LIMIT_S,
        WORK / "logs" / f"replacement-{runner.name}.log",
    )
    end_processes(marked(mark))
    path = folder / EVENTS
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    result = Result(runner.name, deaths, delays([json.loads(line) for line in lines]))
    if done.timed_out:
        result.problem = f"no end after {LIMIT_S:.0f} s"
    elif len(result.delays_ms) < deaths:
        said = summary_line(done.output) or last_line(done.output)
        result.problem = f"{len(result.delays_ms)} of {deaths} deaths were followed by a test in "
        result.problem += f"a replacement; exit code {done.exit_code}: {said}"
    return result


def table(results: list[Result]) -> str:
    """Return the results as Markdown."""
    rows = []
    for result in results:
        times = result.delays_ms
        middle = statistics.median(times) if times else None
        spread = f"{min(times):.1f}-{max(times):.1f}" if times else "-"
        row = [result.runner, str(len(times)), number(middle, ".1f"), spread, result.problem]
        rows.append(row)
    return markdown_table(["runner", "deaths", "median ms", "min-max ms", "note"], rows)


def main(arguments: list[str]) -> int:
    """Measure the chosen runners; return 1 where one did not replace every worker."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runner", action="append", choices=list(OPTIONS), help="default: all")
    parser.add_argument("--repeat", type=int, default=10, help="deaths a runner (default 10)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    facts = machine()
    with exclusive() as session:
        clear_caches(WORK / "suites" / "replacement")
        chosen = [RUNNERS[name] for name in options.runner or OPTIONS]
        results = [_one(runner, options.repeat, session) for runner in chosen]
    intro = (
        "# From a worker's death to the next test\n\n"
        f"Python {facts['python']}, {facts['system']}, {facts['cpus']} CPUs; scikit-learn loaded; "
        "one worker; milliseconds.\n\n"
    )
    text = intro + table(results) + "\n"
    if options.markdown:
        options.markdown.write_text(text)
    else:
        print(text)
    if options.json:
        data = {"machine": facts, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    return int(any(result.problem for result in results))


def _one(runner: Runner, deaths: int, session: str) -> Result:
    try:
        wanted = (*runner.requirements, *requirements())
        environment = ensure(runner.environment, wanted, log, checkout=runner.checkout)
    except InstallError as error:
        return Result(runner.name, deaths, [], f"not installed: {error}")
    log(f"{runner.name}: {deaths} deaths")
    return measure(runner, environment, deaths, session)


def log(text: str) -> None:
    """Say on standard error what is being done."""
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
