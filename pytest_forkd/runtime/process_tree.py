"""Identifies processes despite reuse of pids, inspects them, and ends them with all descendants.

Sources: proc_pid_stat(5), pidfd_open(2), pid_namespaces(7). Without ``/proc``, a process is
identified by its pid alone, and its descendants cannot be found.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pytest_forkd.runtime.proc_stat import read_stat

__all__ = ["Look", "Process", "end_tree"]

#: Seconds between checks of what is left of a tree.
_PAUSE = 0.002
_ENDED = ("Z", "X", "x")
_STOPPED = ("T", "t")


class Look(NamedTuple):
    """What a process is doing.

    :ivar state: the letter of its state, see proc_pid_stat(5).
    :ivar cpu: CPU time that it has used, in clock ticks.
    :ivar parent: its parent's pid.
    :ivar started: when it started, in clock ticks since the machine was booted.
    """

    state: str
    cpu: int
    parent: int
    started: str

    @property
    def is_stopped(self) -> bool:
        """Whether a signal (SIGSTOP) or a debugger has stopped it."""
        return self.state in _STOPPED


def _look(pid: int | str) -> Look | None:
    fields = read_stat(pid)
    if fields is None:
        return None
    try:
        return Look(fields[0], int(fields[11]) + int(fields[12]), int(fields[1]), fields[19])
    except (IndexError, ValueError):
        return None


def _namespace() -> str:
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


@dataclass(frozen=True)
class Process:
    """A process, which can be told from others with the same pid.

    :ivar pid: its pid.
    :ivar started: when it started, in clock ticks since the machine was booted; empty if unknown.
    :ivar namespace: the pid namespace that its pid belongs to.
    """

    pid: int
    started: str
    namespace: str

    @classmethod
    def running(cls, pid: int) -> Process | None:
        """The process that now has this pid; ``None`` if there is none."""
        look = _look(pid)
        if look is not None:
            return None if look.state in _ENDED else cls(pid, look.started, _namespace())
        if os.path.isdir("/proc/self"):
            return None
        try:
            os.kill(pid, 0)
        except OSError:
            return None
        return cls(pid, "", "")

    def to_json(self) -> dict[str, Any]:
        """To be written down."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Process | None:
        """The inverse of :meth:`to_json`; ``None`` if ``stored`` is anything else."""
        pid, started, namespace = (stored.get(name) for name in ("pid", "started", "namespace"))
        if type(pid) is not int or not 1 < pid < 2**31:
            return None
        if not isinstance(started, str) or not isinstance(namespace, str):
            return None
        return cls(pid, started, namespace)

    def is_running(self) -> bool:
        """Whether it is running; false also if that cannot be found out from here."""
        return Process.running(self.pid) == self

    def look(self) -> Look | None:
        """What it is doing; ``None`` if it has ended, or if that cannot be read."""
        look = _look(self.pid)
        if look is None or look.state in _ENDED or look.started != self.started:
            return None
        return look

    def open(self) -> int | None:
        """A pidfd of the process, which the caller has to close; ``None`` if it has ended."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return None
        if not self.is_running():  # the pid may have been reused before it was opened
            os.close(fd)
            return None
        return fd


def end_tree(process: Process, limit: float = 2.0) -> bool:
    """Kill a process and all its descendants.

    The process is stopped first, so that it starts nothing more, and killed last. If it adopts
    orphans (PR_SET_CHILD_SUBREAPER), no descendant can escape.

    :param limit: seconds to try for.
    :returns: whether the process has ended.
    """
    deadline = time.monotonic() + limit
    if not hasattr(os, "pidfd_open") or not process.started:
        if process.is_running():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGKILL)
        while process.is_running() and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        return not process.is_running()
    fd = process.open()
    if fd is None:
        return not process.is_running()
    try:
        signal.pidfd_send_signal(fd, signal.SIGSTOP)
        while time.monotonic() < deadline:
            look = process.look()
            if look is None:
                break
            below = _descendants(process.pid)
            if not below and look.is_stopped:
                break
            for pid in below:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_PAUSE)
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(max(0.1, deadline - time.monotonic()) * 1000))
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    finally:
        os.close(fd)


def _descendants(pid: int) -> list[int]:
    """The pids of a process's descendants that have not ended."""
    below: dict[int, list[tuple[int, Look]]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            look = _look(entry)
            if look is not None:
                below.setdefault(look.parent, []).append((int(entry), look))
    found, todo = [], [pid]
    while todo:
        for child, look in below.get(todo.pop(), ()):
            todo.append(child)
            if look.state not in _ENDED:
                found.append(child)
    return found
