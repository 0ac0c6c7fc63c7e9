"""One run of one runner on one suite: start it, judge it, give its figures.

In: a case (a suite, a runner, a worker count). Out: seconds, and in words what was wrong, if
anything. A run counts only if it ended in time, with exit code 0, with the expected number of
passed tests, and left no process of its own group behind. What a runner keeps for its next run is
in a session, and so in a group, of its own.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from environments import Environment
from layout import WORK
from memory import Peak, Sampler
from processes import Finished, clean_environment, kept, run
from runners import Runner
from suites import Suite

SUMMARY = re.compile(r"\b\d+ (?:passed|failed|error|skipped|xfailed|deselected)\b.* in [\d.]+ ?s")
COUNT = re.compile(r"(\d+) (passed|failed|errors?)\b")
SETTLE_S = 1.0  # how long what a runner keeps may take to be alone again
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Case:
    """One cell of the comparison and all that was measured in it.

    first_s: seconds of the first run, which is not counted among `seconds`.
    problems: what was wrong with runs, in words; such runs are not counted among `seconds`.
    given_up: the first run failed, so no more were made.
    remarks: what the runner said of its own accord, such as that it works in a slower way.
    cpu_s: of each run among `seconds`, the processor time of the controller alone, in seconds.
    remade: how many of the runs in `seconds` did not find what the runner keeps between runs, or
    replaced it.
    peak: peak memory of one separate run, None where none was made.
    """

    suite: Suite
    runner: Runner
    workers: int
    environment: Environment
    first_s: float | None = None
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    given_up: bool = False
    remarks: set[str] = field(default_factory=set)
    cpu_s: list[float] = field(default_factory=list)
    remade: int = 0
    peak: Peak | None = None

    @property
    def label(self) -> str:
        """The case in a few words, for progress lines."""
        return f"{self.suite.name}: {self.runner.name} {self.workers}"


def mark_of(session: str, case: Case) -> str:
    """Return the mark of a runner's processes on one suite, the same for all runs of a session.

    A process that one run keeps for the next bears the mark of the run that made it. It is counted
    in the next one's memory by this, and the environment, in which the mark is, is the same.
    """
    return f"{session}-{case.runner.name}-{case.suite.name}"


def run_case(case: Case, session: str, *, count: bool = True, sample: bool = False) -> float | None:
    """Run `case` once; return its seconds, or None after adding to `case.problems`.

    With `count`, what was measured is added to the case's lists.
    With `sample` the run's peak memory goes to `case.peak`; its time is then worth nothing.
    """
    mark = mark_of(session, case)
    if case.runner.forgets:
        forget(case.suite.folder, case.runner.forgets)
    there = kept(mark) if case.runner.stop else set()
    sampler = Sampler(mark) if sample else None
    done = run(
        case.runner.command(case.environment.python, case.workers),
        case.suite.folder,
        clean_environment(mark, case.suite.folder),
        case.suite.limit_s,
        log_of(case),
        started=sampler.start if sampler else None,
    )
    if sampler:
        case.peak = sampler.stop()
    case.remarks.update(remarks(done.output))
    problem = judge(done, case.suite.expected, case.suite.limit_s)
    if problem:
        case.problems.append(problem)
        return None
    if count:
        case.seconds.append(done.seconds)
        if done.cpu_s is not None:
            case.cpu_s.append(done.cpu_s)
        case.remade += bool(case.runner.stop) and not (there and _settles(mark, there))
    return done.seconds


def forget(folder: Path, pattern: str) -> None:
    """Remove the files and folders below `folder` that a glob pattern names."""
    for path in list(folder.glob(pattern)):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _settles(mark: str, there: set[int]) -> bool:
    """Tell whether, soon after a run, exactly the processes are kept that were before it."""
    end = time.monotonic() + SETTLE_S
    while kept(mark) != there:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def log_of(case: Case) -> Path:
    """Return the file that holds the output of the case's latest run."""
    return WORK / "logs" / f"{case.suite.name}-{case.runner.name}-{case.workers}.log"


def judge(done: Finished, expected: int | None, limit_s: float) -> str:
    """Return what is wrong with a run in a few words, or an empty string."""
    if done.timed_out:
        return f"no end after {limit_s:.0f} s"
    counts = outcome_counts(done.output)
    if done.exit_code:
        said = summary_line(done.output) or error_line(done.output) or last_line(done.output)
        return f"exit code {done.exit_code}: {said}"
    if counts.get("passed", 0) != expected and expected is not None:
        return f"{counts.get('passed', 0)} tests passed instead of {expected}"
    if done.lingered:
        return "left processes behind"
    return ""


def summary_line(output: str) -> str:
    """Return the last line that sums a run up (`32 passed in 1.99s`), or an empty string."""
    lines = [COLOUR.sub("", line).strip(" =\r") for line in output.splitlines()]
    return next((line for line in reversed(lines) if SUMMARY.search(line)), "")


def outcome_counts(output: str) -> dict[str, int]:
    """Return {outcome: number} from the summary line of a run's output."""
    found = COUNT.findall(summary_line(output))
    return {outcome.rstrip("s"): int(number) for number, outcome in found}


def remarks(output: str) -> list[str]:
    """Return the lines in which forkd says that this suite gets less than it could."""
    lines = (COLOUR.sub("", line).strip() for line in output.splitlines())
    return [line for line in lines if line.startswith("forkd: ")]


def error_line(output: str) -> str:
    """Return the line in which a program says what is wrong with its options, or nothing."""
    lines = (COLOUR.sub("", line).strip() for line in output.splitlines())
    return next((line[:160] for line in lines if ": error: " in line), "")


def last_line(output: str) -> str:
    """Return the last line that is not empty, cut to a table cell's width."""
    lines = [COLOUR.sub("", line).strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:160] if lines else "no output"
