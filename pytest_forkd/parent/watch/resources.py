"""Looks for what was opened before the fork and would be shared by all workers, or dead in them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from pytest_forkd.compat.cpython import running_loop
from pytest_forkd.parent import processes
from pytest_forkd.parent.watch.findings import Finding, is_installed, place_of
from pytest_forkd.runtime.log_files import log_handlers

__all__ = ["OpenFiles", "resource_findings"]

#: Link targets in ``/proc/self/fd`` of files that may be shared, and of those of an event loop.
_HARMLESS_FILES = ("anon_inode:", "/dev/", "/proc/", "/sys/", "/memfd:")
_LOOP_FILES = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:[io_uring]")

#: Files that a process has open if it computes on a GPU, with CUDA or ROCm. NVML opens others: it
#: only lists devices, which still works in a fork.
_GPU_FILES = ("/dev/nvidia-uvm", "/dev/kfd")
#: Name of a socket that CUDA opens besides pipes and files that look like an event loop's.
_GPU_SOCKET = "@cuda-"

#: Seconds for a thread that is done to end: asyncio's threads that wait for a child process still
#: exist for a moment after the result is there.
_ENDING_THREAD_LIMIT = 0.02


class OpenFiles:
    """The files that were open at one moment, to tell later which are new.

    Where there is no ``/proc`` (macOS), ``/dev/fd`` lists descriptors without saying what they are,
    so only sockets and pipes are told apart.
    """

    def __init__(self) -> None:
        self._before = self._list()

    @staticmethod
    def _list() -> dict[int, str]:
        files = {}
        base = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
        for entry in os.listdir(base):
            try:
                fd = int(entry)
                stat = os.fstat(fd)
                name = os.readlink(f"{base}/{entry}") if base.startswith("/proc") else ""
            except (OSError, ValueError):
                continue
            files[fd] = f"{name}|{stat.st_ino}|{stat.st_mode}"
        return files

    def new(self, known: Iterable[int]) -> list[tuple[int, str]]:
        """Descriptors opened since, without the ``known`` ones, and what each refers to."""
        skip = set(known)
        return [
            (fd, identity.partition("|")[0])
            for fd, identity in sorted(self._list().items())
            if fd not in skip and self._before.get(fd) != identity
        ]


def resource_findings(files: OpenFiles, known_fds: Iterable[int]) -> list[Finding]:
    """Look for everything that does not survive a fork, or must not be shared after one.

    :param files: what was open before the suite was configured.
    :param known_fds: descriptors that are handled elsewhere, such as those of capture and of
        adapted plugins.
    """
    threads = _threads()  # waits for those that are ending, which may close files
    opened = files.new([*known_fds, *_log_file_fds()])
    gpus = [target for _fd, target in opened if target in _GPU_FILES]
    return [
        *[Finding(_describe_gpu(target)) for target in gpus[:1]],
        *threads,
        *_open_files(opened, beside_gpu=bool(gpus)),
        *_event_loops(),
        *_native_threads(),
    ]


def _threads() -> list[Finding]:
    deadline = time.monotonic() + _ENDING_THREAD_LIMIT
    while threading.active_count() > 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    findings = []
    for thread in threading.enumerate():
        if thread is threading.main_thread():
            continue
        target = getattr(thread, "_target", None)
        if target is None and type(thread) is not threading.Thread:
            target = type(thread).run
        code = getattr(getattr(target, "__func__", target), "__code__", None)
        what = f"thread {thread.name!r} runs, and would be in no worker"
        path, lineno = place_of(code) if code is not None else ("", 0)
        findings.append(Finding(what) if is_installed(path) else Finding(what, path, lineno))
    return findings


def _open_files(opened: Iterable[tuple[int, str]], *, beside_gpu: bool) -> list[Finding]:
    findings = []
    for fd, target in opened:
        if beside_gpu and (target.startswith("pipe:") or target in _LOOP_FILES):
            continue  # most likely the GPU driver's
        if target.startswith("socket:"):
            name = _describe_socket(fd)
            if beside_gpu and _GPU_SOCKET in name:
                continue
            what = f"{name} is open, and would be shared by all workers"
        elif target.startswith("pipe:"):
            what = f"a pipe (descriptor {fd}) is open, and would be shared by all workers"
        elif target in _LOOP_FILES:
            what = "an event loop is open, and would be shared by all workers"
        elif target.startswith(_HARMLESS_FILES) or is_installed(target):
            continue
        else:
            what = f"file {target} is open, and all workers would share its position"
        findings.append(Finding(what))
    return findings


def _describe_gpu(target: str) -> str:
    what = f"the GPU has been used ({target} is open), and no fork of this process could use it"
    if "torch" in sys.modules:
        # See the documentation of torch.cuda.is_available().
        what += "; torch.cuda.is_available() uses it, unless PYTORCH_NVML_BASED_CUDA_CHECK=1 is set"
    return what


def _describe_socket(fd: int) -> str:
    import socket

    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            name = sock.getsockname()
            try:
                peer = sock.getpeername()
            except OSError:
                peer = None
    except OSError:
        return f"a socket (descriptor {fd})"
    if peer:
        return f"a connection to {_address(peer)}"
    return f"a socket at {_address(name)}" if name else f"a socket (descriptor {fd})"


def _address(name: Any) -> str:
    if isinstance(name, bytes):  # an abstract socket, see unix(7); shown as in ss(8)
        return "@" + name.strip(b"\0").decode("utf-8", "replace")
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)


def _event_loops() -> list[Finding]:
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return []
    running = running_loop()
    return [Finding("an event loop is running")] if running is not None else []


def _native_threads() -> list[Finding]:
    """Threads that libraries started and that would not exist in a fork.

    The thread pools of OpenBLAS end before a fork and restart when needed, in both processes
    (``pthread_atfork``). So fork once as a test. Threads that still run afterwards, such as those
    of GNU OpenMP or gRPC, do not handle forks: a worker that waited for one would hang.
    """
    if sys.platform != "linux" or _task_count() == threading.active_count():
        return []
    pid = processes.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    # A joined thread is still listed for a moment: the kernel wakes the joining thread before it
    # removes the task.
    deadline = time.monotonic() + 0.2
    while (count := _task_count() - threading.active_count()) > 0:
        if time.monotonic() > deadline:
            break
        time.sleep(0.001)
    else:
        return []
    suspects = [
        name for name in ("grpc", "torch", "tensorflow", "sklearn", "numba") if name in sys.modules
    ]
    hint = f" (one of {', '.join(suspects)}?)" if suspects else ""
    noun = "thread" if count == 1 else "threads"
    return [Finding(f"{count} native {noun} of a library run{hint}, and would be in no worker")]


def _task_count() -> int:
    return len(os.listdir("/proc/self/task"))


def _log_file_fds() -> list[int]:
    fds = []
    for handler in log_handlers():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            fds.append(handler.stream.fileno())  # type: ignore[union-attr]
    return fds
