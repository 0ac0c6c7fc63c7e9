"""Time this suite sequentially, under pytest-xdist and under pytest-forkd, and print a table.

    python demo.py
    python demo.py --workers 2,4 --repeats 5 --json results.json

Every run is a command of its own, as a user would type it, and is timed from outside;
``_phases.py`` notes in it when its phases began. Every figure is a median over the repeats. The
runners take turns within each repeat, and every other repeat goes through them backwards, so that a
machine that gets slower in between is unfair to none of them.

Each runner gets one run that is not counted, with the fewest workers: the very first run of all
compiles the modules and fills the file cache, and pytest-forkd remembers between runs what the
suite imports. Anything else starts anew with every run, forkd's parent included.

Exit status: 0 if all went well, 1 if a run failed or the runners disagree about the outcomes, 2 for
a wrong command line, 4 if something is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

SUITE = Path(__file__).resolve().parent
REQUIREMENTS = ("pytest", "pytest-xdist", "pytest-forkd", "numpy", "pandas", "scikit-learn")

PHASES_ENV_VAR = "ML_SUITE_PHASES"  # read by _phases.py
# These change what starting Python costs, or what the command lines below mean.
REMOVED_ENV_VARS = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTEST_ADDOPTS")

SEQUENTIAL, XDIST, FORKD = RUNNERS = ("sequential", "xdist", "forkd")
TAIL_LINES = 20


class RunFailedError(Exception):
    """A run of pytest that ended badly, as a message for the user."""


@dataclass(frozen=True)
class Setup:
    """One line of the table: who runs the suite, in how many workers (0: none)."""

    runner: str
    workers: int

    def __str__(self) -> str:
        return f"{self.runner}, {self.workers} workers" if self.workers else self.runner

    def arguments(self) -> list[str]:
        """What it adds to pytest's command line. All of them win over ``pytest.ini``."""
        if self.runner == SEQUENTIAL:
            return ["--forkd-workers", "0"]
        if self.runner == XDIST:
            return ["-n", str(self.workers)]
        return ["-p", "forkd", "--forkd-workers", str(self.workers)]


@dataclass(frozen=True)
class Run:
    """What one run took, in seconds. The first four figures add up to ``total``."""

    setup: Setup
    spawn: float
    collect: float
    tests: float
    finish: float
    total: float
    outcomes: dict[str, int]


@dataclass(frozen=True)
class Row:
    """The medians of all runs of one setup, and what follows from them."""

    runner: str
    workers: int
    spawn: float
    collect: float
    per_worker: float | None
    tests: float
    total: float
    vs_sequential: float | None
    vs_xdist: float | None


# -- one run --------------------------------------------------------------------------------------


class Launcher:
    """Starts pytest on the suite and reads back what happened."""

    def __init__(self, scratch: Path, timeout: float) -> None:
        self._timeout = timeout
        self._output = scratch / "output.txt"
        self._phases = scratch / "phases.json"
        self._env = {k: v for k, v in os.environ.items() if k not in REMOVED_ENV_VARS}
        self._env[PHASES_ENV_VAR] = str(self._phases)
        inherited = self._env.get("PYTHONPATH")
        self._env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SUITE), inherited)))

    def run(self, setup: Setup) -> Run:
        """Run the suite once."""
        command = [sys.executable, "-m", "pytest", "-p", "_phases", *setup.arguments()]
        self._phases.unlink(missing_ok=True)
        started_at, started = time.time(), time.perf_counter()
        code = self._call(command)
        total = time.perf_counter() - started
        if code is None:
            raise self._failure(setup, command, f"was still running after {self._timeout:g} s")
        if code != 0:
            raise self._failure(setup, command, f"ended with exit status {code}")
        try:
            noted = json.loads(self._phases.read_text(encoding="utf-8"))
            marks: dict[str, float] = noted["marks"]
            collected, last_report = marks["collected"], marks["last_report"]
            # xdist's workers start, then collect. Those of forkd are made once all is collected,
            # so that when they are ready says nothing about when collecting began.
            ready = marks["first_worker" if setup.runner == XDIST else "session_start"]
        except (OSError, ValueError, KeyError) as error:
            raise self._failure(setup, command, f"left no usable phases ({error!r})") from error
        return Run(
            setup=setup,
            spawn=ready - started_at,
            collect=collected - ready,
            tests=last_report - collected,
            finish=total - (last_report - started_at),
            total=total,
            outcomes=noted["outcomes"],
        )

    def _call(self, command: Sequence[str]) -> int | None:
        """Run ``command``; its exit status, or None if it ran out of time.

        The output goes to a file: reading a pipe to its end would wait for all that a run leaves.
        """
        with self._output.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=SUITE,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                return process.wait(self._timeout)
            except BaseException as error:  # a Ctrl-C must not leave the workers running either
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    return None
                raise

    def _failure(self, setup: Setup, command: Sequence[str], what: str) -> RunFailedError:
        lines = self._output.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(f"    {line}" for line in lines[-TAIL_LINES:]) or "    (no output)"
        return RunFailedError(
            f"{setup}: the command {what}\n  {' '.join(command)}\nits last output:\n{tail}"
        )


# -- all runs -------------------------------------------------------------------------------------


def all_setups(runners: Sequence[str], workers: Sequence[int]) -> list[Setup]:
    """The lines of the table in their order."""
    return [
        Setup(runner, count)
        for runner in runners
        for count in ([0] if runner == SEQUENTIAL else workers)
    ]


def in_turns(setups: Sequence[Setup], repeats: int) -> Iterator[Setup]:
    """Every setup once a repeat, every other repeat backwards."""
    for repeat in range(repeats):
        yield from setups if repeat % 2 == 0 else reversed(setups)


def measure(launcher: Launcher, setups: Sequence[Setup], repeats: int) -> list[Run]:
    """Warm up, then do all runs, with one progress line each on stderr."""
    first_of_runner = {setup.runner: setup for setup in reversed(setups)}
    for setup in reversed(first_of_runner.values()):
        progress("warm-up", launcher.run(setup))
    count = len(setups) * repeats
    runs: list[Run] = []
    for number, setup in enumerate(in_turns(setups, repeats), start=1):
        run = launcher.run(setup)
        progress(f"{number:>{len(str(count))}}/{count}", run)
        if runs and run.outcomes != runs[0].outcomes:
            raise RunFailedError(
                f"the outcomes differ:\n  {runs[0].setup}: {outcome_text(runs[0].outcomes)}"
                f"\n  {run.setup}: {outcome_text(run.outcomes)}"
            )
        runs.append(run)
    return runs


def progress(label: str, run: Run) -> None:
    """One line on stderr about a run that has ended."""
    print(f"[{label}] {run.setup}: {run.total:.2f} s", file=sys.stderr, flush=True)


def outcome_text(outcomes: dict[str, int]) -> str:
    """The outcome counts as words: ``30 passed, 2 skipped``."""
    return ", ".join(f"{number} {category}" for category, number in outcomes.items()) or "no tests"


# -- the table ------------------------------------------------------------------------------------


def summarize(runs: Iterable[Run]) -> list[Row]:
    """Medians by setup, in the order in which the setups first ran."""
    by_setup: dict[Setup, list[Run]] = {}
    for run in runs:
        by_setup.setdefault(run.setup, []).append(run)
    totals = {s: statistics.median(r.total for r in found) for s, found in by_setup.items()}
    sequential = totals.get(Setup(SEQUENTIAL, 0))
    rows = []
    for setup, found in by_setup.items():
        total = totals[setup]
        xdist = totals.get(Setup(XDIST, setup.workers))
        fewest = min(s.workers for s in totals if s.runner == setup.runner)
        added = setup.workers - fewest
        rows.append(
            Row(
                runner=setup.runner,
                workers=setup.workers,
                spawn=statistics.median(r.spawn for r in found),
                collect=statistics.median(r.collect for r in found),
                per_worker=(total - totals[Setup(setup.runner, fewest)]) / added if added else None,
                tests=statistics.median(r.tests for r in found),
                total=total,
                vs_sequential=None if sequential is None else sequential / total,
                vs_xdist=None if xdist is None else xdist / total,
            )
        )
    return rows


def render(rows: Sequence[Row]) -> str:
    """The rows as a table of text."""

    def number(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    def factor(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}x"

    head = ("runner", "workers", "spawn", "collect", "per-worker", "tests", "total")
    lines = [(*head, "vs sequential", "vs xdist")]
    lines += [
        (
            row.runner,
            str(row.workers or "-"),
            number(row.spawn),
            number(row.collect),
            number(row.per_worker, 3),
            number(row.tests),
            number(row.total),
            factor(row.vs_sequential),
            factor(row.vs_xdist),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "  ".join("-" * width for width in widths)
    table = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([table[0], rule, *table[1:]])


LEGEND = """\
spawn: from the command to the first worker of xdist; elsewhere to the start of pytest's session
collect: from there until the collection that the tests wait for is known; under forkd, where the
  parent collects and workers are made afterwards, this includes making them
per-worker: what each worker beyond the fewest adds to the total
tests: from there to the last report; total: wall time of the command, its ending included
vs: how many times as fast as that runner, with as many workers"""


# -- the command line -----------------------------------------------------------------------------


def worker_counts(text: str) -> list[int]:
    """Read ``2,4,8``; in ascending order, each once."""
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a list like 2,4,8: {text!r}") from None
    if counts[0] < 1:
        raise argparse.ArgumentTypeError("a number of workers must be 1 or more")
    return counts


def runner_names(text: str) -> list[str]:
    """Read ``sequential,xdist,forkd``; in the table's order, each once."""
    names = {part.strip() for part in text.split(",")}
    unknown = names.difference(RUNNERS)
    if unknown:
        raise argparse.ArgumentTypeError(f"no such runner: {', '.join(sorted(unknown))}")
    return [runner for runner in RUNNERS if runner in names]


def positive(text: str) -> int:
    """Read a whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a whole number from 1 up: {text!r}")
    return int(text)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ends the program with status 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        description="Compare pytest run sequentially, under pytest-xdist and under pytest-forkd."
    )
    add = parser.add_argument
    add("--workers", type=worker_counts, default=[2, 4, 8], metavar="N,N", help="default: 2,4,8")
    add("--repeats", type=positive, default=3, metavar="N", help="runs of each (default: 3)")
    add(
        "--runners",
        type=runner_names,
        default=list(RUNNERS),
        metavar="NAME,NAME",
        help="of sequential, xdist, forkd (default: all)",
    )
    add("--timeout", type=positive, default=120, metavar="S", help="of one run (default: 120 s)")
    add("--json", type=Path, metavar="FILE", help="write every run and the medians there as well")
    return parser.parse_args(argv)


def installed_versions() -> tuple[dict[str, str], list[str]]:
    """What the comparison needs: the versions of what is installed, the names of what is not."""
    found = {name: installed_version(name) for name in REQUIREMENTS}
    versions = {name: version for name, version in found.items() if version is not None}
    return versions, [name for name in REQUIREMENTS if name not in versions]


def installed_version(name: str) -> str | None:
    """The version of the distribution ``name``, or None if there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; its exit status."""
    options = parse_arguments(argv)
    versions, missing = installed_versions()
    if missing:
        requirements = os.path.relpath(SUITE / "requirements.txt")
        print(f"demo.py: not installed: {', '.join(missing)}", file=sys.stderr)
        print(
            f"install with: python -m pip install pytest-forkd -r {requirements}", file=sys.stderr
        )
        return 4
    load = os.getloadavg()[0]
    setups = all_setups(options.runners, options.workers)
    with tempfile.TemporaryDirectory(prefix="ml-suite-") as scratch:
        try:
            runs = measure(Launcher(Path(scratch), options.timeout), setups, options.repeats)
        except RunFailedError as error:
            print(f"demo.py: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("demo.py: interrupted", file=sys.stderr)
            return 130
    rows = summarize(runs)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(
        f"{outcome_text(runs[0].outcomes)} in every run; seconds, medians of {options.repeats};"
        f" {os.cpu_count()} CPUs, load {load:.1f} at the start, {python}"
    )
    print(", ".join(f"{name} {version}" for name, version in versions.items()), end="\n\n")
    print(render(rows), end="\n\n")
    print(LEGEND)
    if options.json is not None:
        report = {
            "python": python,
            "cpus": os.cpu_count(),
            "load_at_start": load,
            "versions": versions,
            "repeats": options.repeats,
            "runs": [asdict(run) for run in runs],
            "rows": [asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
