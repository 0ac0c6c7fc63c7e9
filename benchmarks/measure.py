"""One run of one runner on one suite: start it, judge it, give its figures.

In: a case (a suite, a runner, a worker count). Out: seconds, and in words what was wrong, if
anything. A run counts only if it ended in time, with exit code 0, with the expected number of
passed tests, and left no process of its own group behind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from environments import Environment
from layout import WORK
from memory import Peak, Sampler
from processes import Finished, clean_environment, run
from runners import Runner
from suites import Suite

SUMMARY = re.compile(r"\b\d+ (?:passed|failed|error|skipped|xfailed|deselected)\b.* in [\d.]+ ?s")
COUNT = re.compile(r"(\d+) (passed|failed|errors?)\b")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Case:
    """One cell of the comparison and all that was measured in it.

    first_s: seconds of the first run, which is not counted among `seconds`.
    problems: what was wrong with runs, in words; such runs are not counted among `seconds`.
    given_up: the first run failed, so no more were made.
    remarks: what the runner said of its own accord, such as that it works in a slower way.
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
    peak: Peak | None = None

    @property
    def label(self) -> str:
        """The case in a few words, for progress lines."""
        return f"{self.suite.name}: {self.runner.name} {self.workers}"


def mark_of(session: str, runner: Runner) -> str:
    """Return the mark of a runner's processes, the same for all its runs in one session."""
    return f"{session}-{runner.name}"


def run_case(
    case: Case, session: str, expected: int | None, *, sample: bool = False
) -> float | None:
    """Run `case` once; return its seconds, or None after adding to `case.problems`.

    `expected` is the number of tests that must pass, None for any.
    With `sample` the run's peak memory goes to `case.peak`; its time is then worth nothing.
    """
    mark = mark_of(session, case.runner)
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
    problem = judge(done, expected, case.suite.limit_s)
    if problem:
        case.problems.append(problem)
        return None
    return done.seconds


def log_of(case: Case) -> Path:
    """Return the file that holds the output of the case's latest run."""
    return WORK / "logs" / f"{case.suite.name}-{case.runner.name}-{case.workers}.log"


def judge(done: Finished, expected: int | None, limit_s: float) -> str:
    """Return what is wrong with a run in a few words, or an empty string."""
    if done.timed_out:
        return f"no end after {limit_s:.0f} s"
    counts = outcome_counts(done.output)
    if done.exit_code:
        said = summary_line(done.output) or last_line(done.output)
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


def last_line(output: str) -> str:
    """Return the last line that is not empty, cut to a table cell's width."""
    lines = [COLOUR.sub("", line).strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:160] if lines else "no output"
