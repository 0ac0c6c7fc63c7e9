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
    """Take off what a fork has from its parent: signal handlers, and whom it dies with.

    :param parent_pid: its parent's.
    :param known: a pipe that says that the controller knows of this process. If it does not, this
        process ends.
    """
    processes.die_with(parent_pid)
    if not os.read(known, 1):
        os._exit(70)  # EX_SOFTWARE of sysexits.h
    os.close(known)
    # Should the parent be killed, the controller, which knows of this process by now, ends it:
    # after all that descends from it, which nobody could find any more if this process died first.
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
    :param request: what it is to collect.
    :param imported_environ: variables that early imports have set, see ``Preloaded``.
    :param files: what it leaves if it dies.
    :returns: its exit status.
    """
    environ = request["environ"]
    for name, (before, after) in imported_environ.items():
        # What imports have set is part of what the suite would find after its own, unless the
        # controller has set something else since.
        if environ.get(name) == before:
            environ[name] = after
    from pytest_forkd.parent.worker.collector import run_collector

    channel = FrameSocket(socket.socket(fileno=connection))
    return run_collector(channel, request, files=files)
