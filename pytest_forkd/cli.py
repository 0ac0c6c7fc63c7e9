"""The pytest-forkd command: kept parents, and what forkd daemons have and keep for us."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from pytest_forkd.channel.frames import FrameError, FrameSocket
from pytest_forkd.forkd.commands import add_commands
from pytest_forkd.forkd.errors import ForkdError
from pytest_forkd.snapshots.store import Store, StoreError
from pytest_forkd.tables import duration, print_table

__all__ = ["main"]

#: Seconds for a parent to answer; it may be importing.
_ANSWER_TIMEOUT = 10.0
#: Seconds for a parent that nobody uses to end.
_END_TIMEOUT = 5.0


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    :param argv: its arguments; those of the process if left out.
    :returns: the exit status: 1 if it could not do all that it was asked for.
    """
    from pytest_forkd import __version__
    from pytest_forkd.qemu.cli import add_image_commands

    parser = argparse.ArgumentParser(prog="pytest-forkd", description=__doc__)
    parser.add_argument("--version", action="version", version=f"pytest-forkd {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    status = commands.add_parser("status", help="list the parents that are kept")
    status.set_defaults(run=_status)
    stop = commands.add_parser(
        "stop", help="end the kept parents of suites in and below the current directory"
    )
    stop.add_argument("--all", action="store_true", help="end every kept parent of this user")
    stop.set_defaults(run=_stop)
    add_commands(commands)
    add_image_commands(commands)
    options = parser.parse_args(argv)
    if options.run is None:
        parser.print_help()
        return 0
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except ForkdError as exc:
        print(f"pytest-forkd: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pytest-forkd: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except ModuleNotFoundError as exc:
        if exc.name != "httpx":
            raise
        print(
            "pytest-forkd: this needs httpx; install it with: "
            "python -m pip install 'pytest-forkd[forkd]'",
            file=sys.stderr,
        )
        return 1


def _status(options: argparse.Namespace) -> int:
    failures = 0
    rows = []
    for connection in _parents():
        answer = _ask(connection, "status")
        if answer is None:
            failures += 1
        else:
            rows.append(_row(answer["status"]))
    if not rows and not failures:
        print("no parent is kept")
    elif rows:
        print_table(["PID", "AGE", "LAST USE", "MEMORY", "MODULES", "SUITE", "PACKAGES"], rows)
    return int(failures > 0)


def _row(status: dict[str, Any]) -> list[str]:
    runs = status["runs"]
    return [
        str(status["pid"]),
        duration(status["age"]),
        f"in use ({runs})" if runs else f"{duration(status['idle'])} ago",
        _memory(status["pid"]),
        str(status["modules"]),
        status["project"].partition("|")[0],
        " ".join(status["packages"]) or "-",
    ]


def _stop(options: argparse.Namespace) -> int:
    failures = stopped = 0
    for connection in _parents():
        with contextlib.closing(connection):
            if not options.all:
                answer = _ask(connection, "status")
                if answer is None or not _is_here(answer["status"]["project"]):
                    failures += answer is None
                    continue
            answer = _ask(connection, "stop")
            if answer is None:
                failures += 1
                continue
            stopped += 1
            status = answer["stopping"]
        if status["runs"]:
            noun = "run" if status["runs"] == 1 else "runs"
            print(f"parent {status['pid']} ends with the {status['runs']} {noun} that use it")
        elif _wait_for_end(status["pid"]):
            print(f"parent {status['pid']} has ended")
        else:
            print(f"parent {status['pid']} does not end", file=sys.stderr)
            failures += 1
    if not stopped and not failures:
        print("no parent is kept" if options.all else "no parent is kept for suites here")
    return int(failures > 0)


def _parents() -> Iterator[FrameSocket]:
    try:
        yield from Store.find().connections()
    except StoreError as exc:
        print(f"pytest-forkd: {exc}", file=sys.stderr)


def _ask(connection: FrameSocket, what: str) -> dict[str, Any] | None:
    """A parent's answer; ``None`` if it has none, which is said."""
    try:
        connection.send({what: {}})
        return connection.receive(_ANSWER_TIMEOUT).message
    except TimeoutError:
        print(
            f"a parent has not answered within {_ANSWER_TIMEOUT:g} seconds; it may be importing",
            file=sys.stderr,
        )
    except EOFError:
        print("a parent was just ending", file=sys.stderr)
    except (OSError, FrameError) as exc:
        print(f"a parent cannot be asked: {exc}", file=sys.stderr)
    return None


def _is_here(project: str) -> bool:
    """Whether a suite's root directory is the current one, above or below it."""
    root, here = os.path.realpath(project.partition("|")[0]), os.path.realpath(os.curdir)
    return os.path.commonpath([root, here]) in (root, here)


def _wait_for_end(pid: int) -> bool:
    deadline = time.monotonic() + _END_TIMEOUT
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if _is_zombie(pid):
            return True  # it ended; who started it has not noticed yet
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return False


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return False


def _memory(pid: int) -> str:
    """The proportional set size, see proc_pid_smaps(5): shared pages count in parts."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return f"{int(line.split()[1]) * 1024 / 1e6:.0f} MB"
    except OSError:
        pass
    return "?"


if __name__ == "__main__":
    sys.exit(main())
