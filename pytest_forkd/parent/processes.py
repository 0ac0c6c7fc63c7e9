"""Keeping track of processes: who dies with whom, and who is left."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import time
import warnings
from collections.abc import Container, Iterable
from typing import Any

from pytest_forkd.compat.process_ids import handed_down
from pytest_forkd.runtime.proc_stat import read_stat

__all__ = ["become_subreaper", "children", "die_with", "fork", "kill_children"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36


@functools.cache
def _libc() -> Any:
    # Once, before there are workers: it takes each 0.4 ms and 600 KB of memory of its own.
    import ctypes

    return ctypes.CDLL(None)


def _prctl(option: int, argument: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            _libc().prctl(option, argument, 0, 0, 0)


def die_with(parent_pid: int | None) -> None:
    """End this process (SIGKILL) when ``parent_pid``, its parent, ends; Linux only.

    The kernel follows the *thread* that forked (prctl(2)), so fork from a main thread. Ends at once
    if the parent has gone already. ``None`` undoes an earlier call.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if parent_pid is not None else 0)
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(1)


def become_subreaper() -> None:
    """Adopt the orphans of this process's descendants, so that they can be ended; Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def fork() -> int:
    """``os.fork()`` whose child is to go on as if it had done everything itself.

    Without the warning of Python 3.12 and later about native threads, and those of libraries that
    ask to be called before a fork, as JAX does: the suite has not forked. The tripwires look for
    threads that do not survive; the pools of BLAS libraries do.
    """
    with handed_down(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()


def _may_have_children() -> bool:
    """Whether this process has children; asking the kernel is quicker than a look at /proc."""
    if not hasattr(os, "waitid"):  # macOS, before Python 3.13
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def children() -> list[int]:
    """The pids of this process's children, zombies included; empty where there is no /proc."""
    if not _may_have_children():
        return []
    me = os.getpid()
    found = []
    try:
        entries = os.listdir("/proc")
    except OSError:
        return []
    for entry in entries:
        if entry.isdecimal():
            fields = read_stat(entry)
            if fields is not None and int(fields[1]) == me:
                found.append(int(entry))
    return found


def kill_children(pids: Iterable[int] = (), limit: float = 2.0, spare: Container[int] = ()) -> None:
    """Kill and reap this process's children, and theirs as they are adopted.

    :param pids: children to kill where :func:`children` cannot list them.
    :param limit: seconds to try for.
    :param spare: children to leave alone.
    """
    deadline = time.monotonic() + limit
    left = set(pids)
    while True:
        left.update(pid for pid in children() if pid not in spare)
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        left = {pid for pid in left if not _reap(pid)}
        if time.monotonic() > deadline:
            return
        if left:
            time.sleep(0.002)


def _reap(pid: int) -> bool:
    """Whether a child has gone."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
