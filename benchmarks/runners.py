"""The runners that are compared: what each needs installed and its command line for N workers.

In: a runner's name and a worker count. Out: the requirements of its virtual environment and
the command line, as a list. Every runner is asked for its short output (`-q`) and otherwise
left at its defaults. What it keeps from one run to the next (durations, a parent) it may use,
unless it stands here once more under a name that says that it must not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

Command = Callable[[Path, int], list[str]]


@dataclass(frozen=True)
class Runner:
    """One way to run a suite.

    environment: the virtual environment it runs in (runners may share one).
    requirements: what that environment holds besides what the suites import.
    checkout: whether the environment holds this checkout.
    commit: which commit of it; empty for the working tree.
    parallel: False for the one that knows no worker count.
    command: from the environment's Python and a worker count to a command line.
    stop: from the environment's Python to the command line that ends the processes it keeps
    between runs; None for a runner that keeps none.
    forgets: what is removed from the suite's folder before each run, as a glob pattern.
    suites: the only suites that it is for; empty for all.
    """

    name: str
    summary: str
    environment: str
    requirements: tuple[str, ...]
    command: Command
    checkout: bool = False
    commit: str = ""
    parallel: bool = True
    stop: Callable[[Path], list[str]] | None = None
    forgets: str = ""
    suites: tuple[str, ...] = ()


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


def stop_forkd(python: Path) -> list[str]:
    """Return the command line that ends all kept parents of the runtime directory."""
    return [str(python.with_name("pytest-forkd")), "stop", "--all"]


def forkd_status(python: Path) -> list[str]:
    """Return the command line that lists them, one a line."""
    return [str(python.with_name("pytest-forkd")), "status"]


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
            "xdist-loadscope",
            "pytest-xdist, `--dist loadscope`",
            "xdist",
            XDIST,
            _pytest("-n", "{n}", "--dist", "loadscope"),
            suites=("module_fixture",),
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
            "this checkout, as on a second run: a parent is kept, durations are known",
            "forkd",
            XDIST,
            _pytest("-p", "forkd", "--forkd-workers", "{n}"),
            checkout=True,
            stop=stop_forkd,
        ),
        Runner(
            "forkd-first",
            "this checkout, as on a first run: nothing is kept, nothing known",
            "forkd",
            XDIST,
            _pytest("-p", "forkd", "--forkd-workers", "{n}", "--forkd-keep=0"),
            checkout=True,
            forgets=".pytest_cache/**/*forkd*",
        ),
    )
}


def add_commit(commit: str) -> list[str]:
    """Add this checkout's runners once more, as of another commit; return their names."""
    names = []
    for name in ("forkd", "forkd-first"):
        runner = RUNNERS[name]
        before = f"{name}-before"
        RUNNERS[before] = replace(
            runner,
            name=before,
            summary=f"{runner.summary.replace('this checkout', f'commit {commit}')}",
            environment="forkd-before",
            commit=commit,
        )
        names.append(before)
    return names
