"""Ties the lifetimes of processes together, and finds and ends the children that are left."""

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
    # Load it once, before workers are forked: each would need 0.4 ms and 600 KB of memory for it.
    import ctypes

    return ctypes.CDLL(None)


def _prctl(option: int, argument: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            _libc().prctl(option, argument, 0, 0, 0)


def die_with(parent_pid: int | None) -> None:
    """Have the kernel kill this process (SIGKILL) when its parent ``parent_pid`` ends; Linux only.

    The signal is sent when the *thread* that forked ends (prctl(2)), so fork from a main thread.
    Exits at once if the parent has already gone. ``None`` undoes an earlier call.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if parent_pid is not None else 0)
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(1)


def become_subreaper() -> None:
    """Adopt the orphans of this process's descendants, so that they can be ended; Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def fork() -> int:
    """``os.fork()`` without warnings; the child owns inherited locks as if it had made them.

    Python 3.12 and later warns about native threads, and so do libraries that are called before a
    fork, such as JAX. The suite did not fork, so it must not get these warnings. The tripwires look
    for threads that do not survive a fork; the pools of BLAS libraries do.
    """
    with handed_down(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()


def _may_have_children() -> bool:
    """Whether this process has children; waitid(2) is quicker than listing /proc."""
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
    """Kill and reap this process's children, and their children as this process adopts them.

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
    """Reap a child if it has ended; returns whether it is gone."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
