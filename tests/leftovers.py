"""Finding what a run has left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from pytest_forkd.channel.frames import FrameError, FrameSocket
from pytest_forkd.parent.kept.store import ParentStore, StoreError

__all__ = ["end_kept_parents", "run_processes", "wait_for_no_processes"]


def run_processes(directory: str) -> list[str]:
    """Processes of a run that was started below ``directory``: their command lines.

    A process of a run has its working directory there; workers keep it even if their test suite
    starts other programs.
    """
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        try:
            cwd = os.readlink(f"/proc/{entry}/cwd")
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if command and (cwd == directory or cwd.startswith(directory + "/")):
            found.append(f"{entry}: {command[:120]}")
    return found


def wait_for_no_processes(directory: str, limit: float) -> list[str]:
    """Wait until :func:`run_processes` finds nothing.

    :param limit: seconds to wait.
    :returns: what is left then.
    """
    deadline = time.monotonic() + limit
    while True:
        left = run_processes(directory)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def end_kept_parents(store: ParentStore) -> list[int]:
    """End the kept parents of a store; returns their process ids."""
    pids = []
    connections: list[FrameSocket] = []
    with contextlib.suppress(StoreError):  # a test has made it unusable
        connections += store.connections()
    for connection in connections:
        with contextlib.closing(connection), contextlib.suppress(OSError, EOFError, FrameError):
            connection.send({"stop": {}})
            pid = connection.receive(30).message["stopping"]["pid"]
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            pids.append(pid)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(os.path.exists(f"/proc/{pid}/exe") for pid in pids):
        time.sleep(0.005)
    return pids
