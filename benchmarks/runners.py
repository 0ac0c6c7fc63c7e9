"""The runners that are compared: what each needs installed and its command line for N workers.

In: a runner's name and a worker count. Out: the requirements of its virtual environment and
the command line, as a list. Every runner is asked for its short output (`-q`) and otherwise
left at its defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Command = Callable[[Path, int], list[str]]


@dataclass(frozen=True)
class Runner:
    """One way to run a suite.

    environment: the virtual environment it runs in (runners may share one).
    requirements: what that environment holds besides what the suites import.
    checkout: whether the environment holds this checkout.
    parallel: False for the one that knows no worker count.
    command: from the environment's Python and a worker count to a command line.
    """

    name: str
    summary: str
    environment: str
    requirements: tuple[str, ...]
    command: Command
    checkout: bool = False
    parallel: bool = True


def _pytest(*options: str) -> Command:
    """Return a command line maker; `{n}` in the options becomes the worker count."""

    def command(python: Path, workers: int) -> list[str]:
        return [
            str(python),
            "-m",
            "pytest",
            "-q",
            *(option.format(n=workers) for option in options),
        ]

    return command


def _rstest(*options: str) -> Command:
    """Return a maker of rstest's command line: a program of its own, told which Python to use."""

    def command(python: Path, workers: int) -> list[str]:
        program = python.with_name("rstest")
        return [str(program), "-q", "-n", str(workers), "--python", str(python), *options]

    return command


XDIST = ("pytest", "pytest-xdist")

RUNNERS: dict[str, Runner] = {
    runner.name: runner
    for runner in (
        Runner(
            "sequential",
            "plain pytest, one process",
            "sequential",
            ("pytest",),
            _pytest(),
            parallel=False,
        ),
        Runner("xdist", "pytest-xdist, `--dist load`", "xdist", XDIST, _pytest("-n", "{n}")),
        Runner(
            "xdist-worksteal",
            "pytest-xdist, `--dist worksteal`",
            "xdist",
            XDIST,
            _pytest("-n", "{n}", "--dist", "worksteal"),
        ),
        Runner(
            "zygote",
            "pytest-zygote",
            "zygote",
            ("pytest", "pytest-zygote"),
            _pytest("--workers", "{n}"),
        ),
        Runner(
            "parallex",
            "pytest-parallex, fork mode",
            "parallex",
            ("pytest", "pytest-parallex"),
            _pytest("--parallel=fork", "--parallel-workers", "{n}"),
        ),
        Runner("rstest", "rstest", "rstest", ("rstest",), _rstest()),
        Runner(
            "rstest-fork-pool",
            "rstest, workers forked from a process that has imported its core",
            "rstest",
            ("rstest",),
            _rstest("--fork-pool"),
        ),
        Runner(
            "forkd",
            "this checkout; every run makes its own parent",
            "forkd",
            XDIST,
            _pytest("-p", "forkd", "--forkd-workers", "{n}"),
            checkout=True,
        ),
    )
}
