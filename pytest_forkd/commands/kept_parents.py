"""``pytest-forkd status`` and ``stop``: the parents that are kept for later runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from typing import Any

from pytest_forkd.channel.frames import FrameError
from pytest_forkd.console.tables import duration, print_table
from pytest_forkd.parent.kept.answers import NotAnswering, receive
from pytest_forkd.parent.kept.store import KeptParent, ParentStore
from pytest_forkd.runtime.process_tree import Process, end_tree

__all__ = ["add_parent_commands"]

#: Seconds for a parent to answer; it may be importing.
_ANSWER_TIMEOUT = 10.0
#: Seconds for an idle parent to end.
_END_TIMEOUT = 5.0


def add_parent_commands(commands: Any) -> None:
    """Add the commands to those of ``pytest-forkd``.

    :param commands: what ``add_subparsers()`` has returned.
    """
    status = commands.add_parser("status", help="list the parents that are kept")
    status.set_defaults(run=_status)
    stop = commands.add_parser(
        "stop", help="end the kept parents of suites in and below the current directory"
    )
    stop.add_argument("--all", action="store_true", help="end every kept parent of this user")
    stop.set_defaults(run=_stop)


def _status(options: argparse.Namespace) -> int:
    failures = 0
    rows = []
    for entry in _parents():
        with contextlib.closing(_Asked(entry)) as parent:
            if parent.connection is None and parent.why is None:
                continue
            status = parent.ask("status")
            if status is None:
                print(f"{parent.describe()} {parent.why}", file=sys.stderr)
                failures += 1
            else:
                rows.append(_row(status))
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
    for entry in _parents():
        with contextlib.closing(_Asked(entry)) as parent:
            if parent.connection is None and parent.why is None:
                continue
            status = parent.ask("status") if not options.all else None
            project = status["project"] if status is not None else entry.project
            if not options.all and not (project and _is_here(project)):
                continue
            ended = _stop_one(parent)
            stopped += ended
            failures += not ended
    if not stopped and not failures:
        print("no parent is kept" if options.all else "no parent is kept for suites here")
    return int(failures > 0)


def _stop_one(parent: _Asked) -> bool:
    """Stop a parent after its last run if it answers, else kill it; returns whether that worked."""
    process = parent.process
    status = parent.ask("stop") if parent.why is None else None
    if status is not None:
        if status["runs"]:
            noun = "run" if status["runs"] == 1 else "runs"
            print(f"parent {status['pid']} ends with the {status['runs']} {noun} that use it")
            return True
        parent.close_connection()
        if process is None or _wait_for_end(process):
            print(f"parent {status['pid']} has ended")
            return True
    if process is None:
        print(f"{parent.describe()} {parent.why} and cannot be told for sure", file=sys.stderr)
        return False
    if not end_tree(process):
        print(f"parent {process.pid} does not end", file=sys.stderr)
        return False
    parent.entry.remove()
    why = parent.why or f"did not end within {_END_TIMEOUT:g} seconds"
    print(f"parent {process.pid} {why}; it was killed, with what it had started")
    return True


def _parents() -> list[KeptParent]:
    """The entries of all kept parents.

    :raises StoreError: if others own or can access the directory.
    """
    with ParentStore.find() as store:
        return store.entries()


class _Asked:
    """A kept parent to ask something.

    :ivar connection: ``None`` if it has ended, or accepts no connections.
    :ivar process: the parent, if it is known.
    :ivar why: what is wrong with it, if it does not answer.
    """

    def __init__(self, entry: KeptParent) -> None:
        self.entry = entry
        self.process = entry.process
        self.connection = entry.connect()
        self.why: str | None = None
        if self.connection is None and self.process is not None and entry.exists():
            self.why = "does not answer: others have been waiting for it"

    def ask(self, what: str) -> dict[str, Any] | None:
        """Its answer; ``None`` if it does not answer, see :attr:`why`."""
        if self.connection is None:
            return None
        state = self.entry.state  # read once, since it may remove its directory at any time
        try:
            self.connection.send({what: {}})
            answer = receive(
                self.connection,
                self.process,
                lambda: self.entry.state if self.entry.exists() else state,
                _ANSWER_TIMEOUT,
            )
            return dict(next(iter(answer.values())))
        except NotAnswering as exc:
            self.why = f"does not answer: {exc}"
        except TimeoutError:
            self.why = f"has been importing for {_ANSWER_TIMEOUT:g} seconds or more"
        except EOFError:
            self.why = "was just ending"
        except (OSError, FrameError) as exc:
            self.why = f"cannot be asked: {exc}"
        return None

    def describe(self) -> str:
        """Its pid, if known."""
        return f"parent {self.process.pid}" if self.process is not None else "a parent"

    def close_connection(self) -> None:
        """Close the connection: a parent does not end while one is open."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def close(self) -> None:
        """Close the connection and the entry."""
        self.close_connection()
        self.entry.close()


def _is_here(project: str) -> bool:
    """Whether a suite's root directory is the current one, above or below it."""
    root, here = os.path.realpath(project.partition("|")[0]), os.path.realpath(os.curdir)
    return os.path.commonpath([root, here]) in (root, here)


def _wait_for_end(process: Process) -> bool:
    deadline = time.monotonic() + _END_TIMEOUT
    while process.is_running():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _memory(pid: int) -> str:
    """The proportional set size, see proc_pid_smaps(5): shared pages count proportionally."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return f"{int(line.split()[1]) * 1024 / 1e6:.0f} MB"
    except OSError:
        pass
    return "?"
