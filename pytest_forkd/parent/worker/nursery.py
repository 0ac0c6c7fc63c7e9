"""Forks workers on request, watches them, and says how each one ended."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_forkd.channel.claims import Claims
from pytest_forkd.channel.events import unpack_object
from pytest_forkd.channel.frames import DescriptorsLost, Frame, FrameError, FrameSocket
from pytest_forkd.channel.wire import WorkerChannel
from pytest_forkd.parent import processes
from pytest_forkd.parent.hygiene import CrashFiles

__all__ = ["Nursery", "WorkerStart"]

#: Seconds between looks at children where the system has no pidfd (pidfd_open(2), Linux 5.3).
_POLL_INTERVAL = 0.02


@dataclass
class WorkerStart:
    """What a new worker is started with.

    :ivar workerinput: its ``config.workerinput``.
    :ivar basetemp: its base temporary directory, below the controller's.
    :ivar channel: its channel to the controller.
    :ivar claims: the file on which it claims items; ``None`` if it shares none with the controller.
    :ivar files: receive its output and its faulthandler dump.
    :ivar exhausted: called between tests; returns which resource the machine has run out of, in
        words, or ``None``.
    """

    workerinput: dict[str, Any]
    basetemp: str | None
    channel: WorkerChannel
    claims: Claims | None
    files: CrashFiles
    exhausted: Callable[[], str | None] | None = None


@dataclass
class _Child:
    worker: str
    files: CrashFiles
    pidfd: int | None


class Nursery:
    """The collector's children.

    Requests of the controller, each a frame with one key:

    * ``fork``: ``{"worker", "workerinput", "basetemp"}`` with the descriptors of the worker's
      channel and claims file;
    * ``signal``: ``{"worker", "signum"}``;
    * ``end``: no more workers; answered by closing the connection once none is left.

    Answers: ``forked``, ``fork_failed``, and ``exit`` with the wait status and the worker's files.
    """

    def __init__(self, connection: FrameSocket) -> None:
        self.connection = connection
        self._children: dict[int, _Child] = {}
        self._ending = False
        self._selector: selectors.BaseSelector | None = None
        self._birth: WorkerStart | None = None

    def fds(self) -> list[int]:
        """The descriptors that the nursery holds open."""
        return [self.connection.fileno()]

    def run(self) -> WorkerStart | None:
        """Serve the controller until it needs no more workers.

        :returns: in a worker, what it was started with; ``None`` in the collector, at the end.
        """
        interrupt = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the controller decides who is interrupted
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.connection, selectors.EVENT_READ, None)
        while not (self._ending and not self._children):
            timeout = None
            if any(child.pidfd is None for child in self._children.values()):
                timeout = _POLL_INTERVAL
            ready = self._selector.select(timeout)
            if timeout is not None:
                self._reap([pid for pid, child in self._children.items() if child.pidfd is None])
            self._reap([key.data for key, _mask in ready if key.data is not None])
            if any(key.data is None for key, _mask in ready):
                self._read_requests()
                if self._birth is not None:
                    signal.signal(signal.SIGINT, interrupt)
                    return self._birth
        processes.kill_children(list(self._children))
        # The connection stays open until the process ends, after its exit handlers.
        return None

    def _read_requests(self) -> None:
        for frame in self._frames():
            if "fork" in frame.message:
                self._fork(frame)
                if self._birth is not None:
                    return
            elif "signal" in frame.message:
                self._signal(**frame.message["signal"])
            elif "end" in frame.message:
                self._ending = True
        if self.connection.eof:
            # The controller has gone, so the workers are of no use.
            processes.kill_children(list(self._children))
            os._exit(1)

    def _frames(self) -> list[Frame]:
        while True:
            try:
                return self.connection.read_available()
            except DescriptorsLost as exc:
                if "fork" in exc.message:
                    self._tell_of_no_fork(exc.message["fork"]["worker"], exc)
            except FrameError:
                self.connection.eof = True
                return []

    def _tell_of_no_fork(self, worker: str, why: Exception) -> None:
        self._tell({"fork_failed": {"worker": worker, "error": str(why)}})

    def _fork(self, frame: Frame) -> None:
        request = frame.message["fork"]
        channel_fd = frame.fds[0]
        claims_fd = frame.fds[1] if len(frame.fds) > 1 else None
        name = request["worker"]
        try:
            files = CrashFiles()
            me = os.getpid()
            pid = processes.fork()
        except OSError as exc:
            self._close(frame)
            self._tell_of_no_fork(name, exc)
            return
        if pid == 0:
            processes.die_with(me)
            self._leave_nursery()
            self._birth = WorkerStart(
                workerinput=unpack_object(request["workerinput"]),
                basetemp=request["basetemp"],
                channel=WorkerChannel(socket.socket(fileno=channel_fd)),
                claims=None if claims_fd is None else Claims(claims_fd),
                files=files,
            )
            return
        self._close(frame)
        child = _Child(name, files, _pidfd(pid))
        self._children[pid] = child
        if child.pidfd is not None:
            assert self._selector is not None
            self._selector.register(child.pidfd, selectors.EVENT_READ, pid)
        self._tell({"forked": {"worker": name, "pid": pid}})

    @staticmethod
    def _close(frame: Frame) -> None:
        for fd in frame.fds:
            os.close(fd)

    def _leave_nursery(self) -> None:
        """In a worker: close what belongs to the collector."""
        assert self._selector is not None
        self._selector.close()
        self.connection.close()
        for child in self._children.values():
            child.files.close()
            if child.pidfd is not None:
                os.close(child.pidfd)
        self._children.clear()

    def _signal(self, worker: str, signum: int) -> None:
        for pid, child in self._children.items():
            if child.worker == worker:
                os.kill(pid, signum)

    def _reap(self, pids: list[int]) -> None:
        for pid in pids:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found == 0:
                continue
            self._tell_exit(pid, status)

    def _tell_exit(self, pid: int, status: int, **more: str) -> None:
        """Report how a worker ended and what its crash files hold, and forget it."""
        child = self._children.pop(pid)
        if child.pidfd is not None:
            assert self._selector is not None
            self._selector.unregister(child.pidfd)
            os.close(child.pidfd)
        left = child.files.read()
        child.files.close()
        self._tell({"exit": {"worker": child.worker, "status": status, **more, **left}})

    def _tell(self, message: dict[str, Any]) -> None:
        # If the controller is gone, the main loop sees the end of the connection.
        with contextlib.suppress(OSError):
            self.connection.send(message)


def _pidfd(pid: int) -> int | None:
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    return None
