"""Ten runs started at once, nothing kept: `python benchmarks/concurrent_runs.py --help`.

All run the same small suite with two workers each, in one folder, as from ten terminals. Before
each round the suite's `.pytest_cache` is removed, and the runtime directory is a new one, so that
no parent is kept and nothing known. The figure is how many parents they make between them. A parent
is told from what is forked from it by the kernel's note that a process has begun a program.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from environments import Environment, InstallError, ensure
from layout import WORK
from measure import forget, judge, last_line
from processes import (
    MARK,
    Finished,
    clean_environment,
    end_processes,
    has_execed,
    kept,
    marked,
    run,
)
from runners import RUNNERS, forkd_status, stop_forkd
from session import RUNTIME, exclusive, private_runtime
from suites import EMPTY_INI, Files, requirements, write_files
from tables import markdown_table, number

NAME = "ten_runs"
RUNS = 10
WORKERS = 2
FILES, TESTS = 4, 5  # test files, and tests in each
LIMIT_S = 120.0
PARENT_PROGRAM = "pytest_forkd/parent/__main__.py"
LOOK_S = 0.03  # a parent lives for much longer than this


@dataclass
class Together:
    """One round of runs started together.

    seconds: wall time of the longest. started: processes seen that ran the parent's
    program. listed: kept parents that `pytest-forkd status` listed afterwards, None where it
    failed. kept: processes that were left running, without their forks. problems: what was wrong,
    in words.
    """

    runs: int
    seconds: float
    started: int
    listed: int | None
    kept: int
    problems: list[str] = field(default_factory=list)

    @property
    def parents(self) -> int:
        """How many parents were made, as far as any of the ways to count them could tell."""
        return max(self.started, self.listed or 0, self.kept)

    def as_json(self) -> dict[str, Any]:
        """Return all fields and the number of parents."""
        return {"parents": self.parents, **asdict(self)}


class ParentWatch:
    """Notes every parent among the processes that bear a mark, whenever it is told to look."""

    def __init__(self, mark: str) -> None:
        """Prepare to look for parents of the runs marked `mark`, which are yet to start."""
        self.seen: set[int] = set()
        self._mark = mark
        self._judged = set(psutil.pids())

    def look(self) -> None:
        """Judge the processes that are new since the last time."""
        for pid in set(psutil.pids()) - self._judged:
            try:
                process = psutil.Process(pid)
                if not has_execed(pid):
                    continue  # it may do so yet
                self._judged.add(pid)
                ours = process.environ().get(MARK) == self._mark
                if ours and any(word.endswith(PARENT_PROGRAM) for word in process.cmdline()):
                    self.seen.add(pid)
            except (psutil.Error, OSError):
                continue  # it has ended


@contextmanager
def watching(mark: str) -> Iterator[set[int]]:
    """Give a set to which the process ids of all parents are added while the block runs."""
    watch = ParentWatch(mark)
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(LOOK_S):
            watch.look()

    thread = threading.Thread(target=loop, name="parent-watch", daemon=True)
    thread.start()
    try:
        yield watch.seen
    finally:
        stop.set()
        thread.join()


def suite_files() -> Files:
    """Return the files of the suite that all run."""
    body = "".join(f"def test_{n}():\n    assert {n} == {n}\n\n\n" for n in range(TESTS))
    files = {f"test_small_{n}.py": body.encode() for n in range(FILES)}
    return {**files, "pytest.ini": EMPTY_INI.encode()}


def one_round(environment: Environment, session: str) -> Together:
    """Start the runs, await them all, count the parents, and end those that are kept."""
    folder = WORK / "suites" / "forkd" / NAME
    write_files(folder, suite_files())
    forget(folder, ".pytest_cache")
    mark = f"{session}-{NAME}"
    command = RUNNERS["forkd"].command(environment.python, WORKERS)
    with private_runtime() as path, watching(mark) as seen:
        variables = clean_environment(mark, folder, **{RUNTIME: path})

        def call(words: list[str], log: str) -> Finished:
            return run(words, folder, variables, LIMIT_S, WORK / "logs" / f"{NAME}-{log}.log")

        with ThreadPoolExecutor(RUNS) as pool:
            ends = list(pool.map(lambda n: call(command, str(n)), range(RUNS)))
        # Not measured around the pool: its threads also wait for the rest of their runs' groups.
        seconds = max(done.seconds for done in ends)
        expected = FILES * TESTS
        problems = [said for done in ends if (said := judge(done, expected, LIMIT_S))]
        left = kept(mark)
        status = call(forkd_status(environment.python), "status")
        listed = None
        if status.exit_code:
            problems.append(f"pytest-forkd status: {last_line(status.output)}")
        else:
            listed = lines_naming(left, status.output)
        stop = call(stop_forkd(environment.python), "stop")
        if stop.exit_code:
            problems.append(f"pytest-forkd stop --all: {last_line(stop.output)}")
        elif alive := kept(mark):
            problems.append(f"{len(alive)} kept after pytest-forkd stop --all")
        end_processes(marked(mark))
    return Together(RUNS, seconds, len(seen), listed, len(left), problems)


def lines_naming(pids: set[int], text: str) -> int:
    """Return how many lines of `text` hold one of `pids` as a number of its own."""
    return sum(bool({int(n) for n in re.findall(r"\d+", line)} & pids) for line in text.split("\n"))


def measure(environment: Environment, session: str, repeat: int) -> Iterator[Together]:
    """Yield `repeat` rounds, each when it is done."""
    for _ in range(repeat):
        yield one_round(environment, session)


def table(rounds: Sequence[Together]) -> str:
    """Return the medians as a Markdown table, and what was wrong below it."""
    header = [
        "runs at once",
        "rounds",
        "parents made",
        "most",
        "all passed",
        "median s",
        "min-max s",
    ]
    seconds = [one.seconds for one in rounds]
    made = [one.parents for one in rounds]
    row = [
        str(RUNS),
        str(len(rounds)),
        number(statistics.median(made), "g"),
        str(max(made)),
        f"{sum(not one.problems for one in rounds)} of {len(rounds)} rounds",
        number(statistics.median(seconds)),
        f"{min(seconds):.2f}-{max(seconds):.2f}",
    ]
    said = sorted({problem for one in rounds for problem in one.problems})
    notes = "\n\nTo note:\n\n" + "\n".join(f"- {problem}" for problem in said) if said else ""
    return markdown_table(header, [row]) + notes


def main(arguments: list[str]) -> int:
    """Measure; return 1 where a run failed or more than one parent was made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)

    def log(text: str) -> None:
        print(text, file=sys.stderr)

    with exclusive() as session:
        try:
            forkd = RUNNERS["forkd"]
            wanted = (*forkd.requirements, *requirements())
            environment = ensure(forkd.environment, wanted, log, checkout=forkd.checkout)
        except InstallError as error:
            log(str(error))
            return 1
        rounds = list(measure(environment, session, options.repeat))
    print(table(rounds))
    if options.json:
        options.json.write_text(json.dumps([one.as_json() for one in rounds], indent=1) + "\n")
    return int(any(one.problems or one.parents != 1 for one in rounds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
