"""Starting a parent process, and the directory for its socket."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest_forkd
from pytest_forkd.backends.base import BackendError
from pytest_forkd.channel.frames import FrameSocket
from pytest_forkd.compat.cpython import interpreter_options
from pytest_forkd.parent.kept.entries import remove_directory
from pytest_forkd.parent.kept.store import KeptParent, socket_bases
from pytest_forkd.parent.plan import Plan
from pytest_forkd.runtime.process_tree import Process

__all__ = ["RUNTIME_FILES", "Keep", "disown", "launch", "runtime_directory", "wait_for_end"]

#: The files that may be in a run's own directory.
RUNTIME_FILES = ("parent", "probe")


class Keep(NamedTuple):
    """Whether and how parents are kept.

    :ivar seconds: how long a parent is kept after a run; 0 if it ends with the run.
    :ivar most: how many parents are kept for this user.
    :ivar ignored: patterns of environment variables that do not matter for which parent is used;
        those with ``!`` in front do.
    """

    seconds: float = 0.0
    most: int = 4
    ignored: tuple[str, ...] = ()


def runtime_directory() -> Path:
    """Make a private directory (mode 0700) for a run's socket.

    In ``XDG_RUNTIME_DIR`` if that is set, else where temporary files go.

    :raises BackendError: if it cannot be made or written to.
    """
    error: OSError | None = None
    for base in socket_bases(len("/pytest-forkd-12345678")):
        try:
            path = Path(tempfile.mkdtemp(prefix="pytest-forkd-", dir=base))
        except OSError as exc:
            error = error or exc
            continue
        try:
            (path / "probe").write_bytes(b"\0" * 4096)  # on a full disk, mkdir may still work
            (path / "probe").unlink()
        except OSError as exc:
            error = error or exc
            remove_directory(path, RUNTIME_FILES)
            continue
        return path
    reason = f": {error.strerror}: {error.filename}" if error is not None else ""
    raise BackendError(
        f"cannot write to a temporary directory{reason}\n"
        "Set TMPDIR to a directory with free space that you may write to."
    )


def launch(
    plan: Plan, path: Path, entry: KeptParent | None, keep: float
) -> tuple[subprocess.Popen[bytes], FrameSocket]:
    """Start a parent that listens, and connect to it.

    :param plan: what it is to import.
    :param path: path of its socket, if it is not to be kept.
    :param entry: the entry by which other runs find it; ``None`` if it is not to be kept.
    :param keep: seconds to keep it for.
    :returns: its process, and the connection.
    :raises BackendError: if it cannot be started.
    """
    with contextlib.ExitStack() as stack:
        address = str(path) if entry is None else entry.socket_path
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        # Bound and listening before the parent starts, so the first connection cannot fail.
        listener.bind(address)
        listener.listen(16)
        plan_file = stack.enter_context(tempfile.TemporaryFile())
        plan.write(plan_file.fileno())
        package = Path(pytest_forkd.__file__).resolve().parent
        command = [
            sys.executable,
            *interpreter_options(),
            str(package / "parent" / "__main__.py"),
            f"--listen-fd={listener.fileno()}",
            f"--plan-fd={plan_file.fileno()}",
        ]
        output: Any = None
        if entry is not None:
            # A kept parent must not hold this run's output open: its reader would wait for the end.
            output = stack.enter_context(entry.create("log"))
            command += [f"--directory={entry.path}", f"--keep={keep}"]
        else:
            command.append(f"--controller={os.getpid()}")
        try:
            # In a session of its own: Ctrl-C on a terminal reaches only the controller, which then
            # interrupts each worker once; and a test that reads from the terminal gets an error.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno(), plan_file.fileno()],
                start_new_session=True,
            )
        except OSError as exc:
            raise BackendError(f"cannot start the parent process: {exc}") from exc
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        control = FrameSocket(sock)
        try:
            running = Process.running(process.pid)
            if entry is not None and running is not None:
                entry.write_process(running, plan.project)
            sock.connect(address)
        except BaseException:
            process.kill()
            process.wait()
            control.close()
            raise
        return process, control


def wait_for_end(process: subprocess.Popen[bytes], timeout: float) -> bool:
    """Whether a process ends within ``timeout`` seconds."""
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    return True


def disown(process: subprocess.Popen[bytes]) -> None:
    """Prevent subprocess's ResourceWarning about a process that is left running."""
    process.returncode = 0
