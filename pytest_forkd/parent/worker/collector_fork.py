"""A fork of the parent becomes a collector."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from typing import Any

from pytest_forkd.channel.frames import FrameSocket
from pytest_forkd.parent import processes
from pytest_forkd.parent.hygiene import CrashFiles

__all__ = ["collect", "leave_parent"]


def leave_parent(parent_pid: int, known: int) -> None:
    """Reset inherited signal handlers; die with the parent until the controller knows of this fork.

    :param parent_pid: the parent's pid.
    :param known: a pipe. A byte arrives once the controller knows of this process; if the pipe
        closes without one, this process exits.
    """
    processes.die_with(parent_pid)
    if not os.read(known, 1):
        os._exit(70)  # EX_SOFTWARE of sysexits.h
    os.close(known)
    # If the parent is killed, this process must not die with it: its descendants could then not be
    # found. The controller, which knows this process by now, ends them first and then this process.
    processes.die_with(None)
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)


def collect(
    connection: int,
    request: dict[str, Any],
    imported_environ: Mapping[str, tuple[str | None, str]],
    files: CrashFiles,
) -> int:
    """Run the collector.

    :param connection: to the controller, a descriptor.
    :param request: the run's request.
    :param imported_environ: variables that early imports have set, see ``Preloaded``.
    :param files: its crash files, for the parent to read if this process dies.
    :returns: its exit status.
    """
    environ = request["environ"]
    for name, (before, after) in imported_environ.items():
        # Without early imports, the suite's own would set these variables. A value that the
        # controller has set in the meantime wins.
        if environ.get(name) == before:
            environ[name] = after
    from pytest_forkd.parent.worker.collector import run_collector

    channel = FrameSocket(socket.socket(fileno=connection))
    return run_collector(channel, request, files=files)
