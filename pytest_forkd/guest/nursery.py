"""The collector's children in a guest: one worker, whose channel goes over the guest's stream."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import tempfile
import time
from typing import Any

from pytest_forkd.channel.frames import Frame
from pytest_forkd.channel.mux import CONTROL, STDERR, WORKER, parse_control
from pytest_forkd.guest.port import Port
from pytest_forkd.guest.resources import CrowdWatch, Resources
from pytest_forkd.guest.restore import SHARED_KERNEL, restore
from pytest_forkd.guest.virtio import VirtioPort
from pytest_forkd.parent.worker.nursery import Nursery, WorkerStart

__all__ = ["Connection", "GuestNursery"]

#: Seconds for the controller to receive the last messages of a process before it ends.
_FLUSH_LIMIT = 60.0
#: Seconds between checks for new data on standard error.
_STDERR_INTERVAL = 0.1
#: Seconds between checks for too many processes.
_CROWD_INTERVAL = 1.0
#: Bytes to read from a dead worker's channel; more than its socket's buffer can hold.
_MAX_LAST_WORDS = 16 * 1024 * 1024
#: Bytes of standard error that are passed on; the rest is dropped.
_MAX_STDERR = 64 * 1024 * 1024
_CHUNK = 128 * 1024


class Connection:
    """The collector's connection to the controller; has the methods of ``FrameSocket`` it needs.

    :param port: the guest's port.
    """

    def __init__(self, port: Port | VirtioPort) -> None:
        self.port = port
        self.eof = False
        # Unnamed, so it is removed when the last process closes it. Reopened, to get O_APPEND.
        with tempfile.TemporaryFile(buffering=0) as file:
            self._stderr = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDWR | os.O_APPEND)
        self._told = 0

    def take_stderr(self) -> None:
        """Redirect standard error of this process, and of its forks, to the controller."""
        os.dup2(self._stderr, 2)

    def fileno(self) -> int:
        """Its descriptor, which the tripwires must ignore."""
        return self._stderr

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, and wait until the controller has it, as this process may end next."""
        self.forward_stderr()
        self.port.control(message)
        self.port.flush(_FLUSH_LIMIT)

    def forward_stderr(self) -> None:
        """Pass on what has been written to standard error."""
        size = min(os.fstat(self._stderr).st_size, _MAX_STDERR)
        while self._told < size and not self.port.full:
            data = os.pread(self._stderr, min(_CHUNK, size - self._told), self._told)
            self._told += len(data)
            self.port.data(STDERR, data)

    def close(self) -> None:
        """In a worker: close what belongs to the collector."""
        self.port.close()
        os.close(self._stderr)


class GuestNursery(Nursery):
    """Takes requests from the guest's port, and forwards the worker's channel."""

    connection: Connection  # type: ignore[assignment]

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)  # type: ignore[arg-type]
        self._port = connection.port
        self._channel: socket.socket | None = None
        #: Commands that the worker has not taken yet, and whether the stream ends after them.
        self._commands = bytearray()
        self._commands_end = False
        #: Disks and processes, which the worker must not use up; set when it is forked.
        self._resources: Resources | None = None
        #: When to look for too many processes next, by ``time.monotonic()``.
        self._next_look = 0.0
        self._crowds = CrowdWatch()

    def run(self) -> WorkerStart | None:
        """Serve the controller until it needs no more workers; see :meth:`Nursery.run`."""
        interrupt = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._selector = self._port.selector
        while not (self._ending and not self._children):
            self._serve()
            if self._birth is not None:
                signal.signal(signal.SIGINT, interrupt)
                return self._birth
        self.connection.forward_stderr()
        self._port.flush(_FLUSH_LIMIT)
        return None

    def _serve(self) -> None:
        ready = self._port.wait(_STDERR_INTERVAL if self._children else None)
        if self._port.opened():
            self._port.control({"hello": {"state": "collected"}})
        self._pass_commands()
        self._pass_on()
        self.connection.forward_stderr()
        pids = [data for data in ready if isinstance(data, int)]
        if any(child.pidfd is None for child in self._children.values()):
            pids = list(self._children)
        if pids:
            self._pass_on(last=True)
            self._reap(pids)
        for channel, payload in self._port.frames():
            if channel == CONTROL:
                self._obey(parse_control(payload))
                if self._birth is not None:
                    return
            elif channel == WORKER:
                self._command(payload)
        self._watch_channel()
        if self._children and self._resources is not None:
            self._look_around(self._resources)

    def _look_around(self, resources: Resources) -> None:
        """Give the worker up if a test keeps forking processes; nobody else would notice."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _CROWD_INTERVAL
        crowd = resources.crowd()
        if self._crowds.stays(crowd, now) and crowd is not None:
            self._give_up(f"its guest was given up: {crowd.reason}")

    def _give_up(self, reason: str) -> None:
        """Kill the worker and report its end, so that the controller drops this guest."""
        self._pass_on(last=True)
        for pid in list(self._children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._tell_exit(pid, int(signal.SIGKILL), reason=reason)

    def _obey(self, message: dict[str, Any]) -> None:
        if "fork" in message:
            if self._children:
                raise RuntimeError("a guest has one worker")
            self._channel, theirs = socket.socketpair()
            self._channel.setblocking(False)
            basetemp = message["fork"]["basetemp"]
            if basetemp is not None:
                # This directory exists on the controller's machine, but not here.
                os.makedirs(os.path.dirname(basetemp), mode=0o700, exist_ok=True)
            self._resources = Resources()
            self._fork(Frame(message, [theirs.detach()]))
            if self._birth is not None:
                self._birth.exhausted = self._resources.exhausted
            else:
                _stand_out()
        elif "signal" in message:
            self._signal(**message["signal"])
        elif "ping" in message:
            self._port.control({"pong": message["ping"]})
        elif "restore" in message:
            self._port.control({"restored": {"failed": restore(message["restore"])}})
        elif "end" in message:
            self._ending = True

    def _leave_nursery(self) -> None:
        if self._channel is not None:
            self._channel.close()
        super()._leave_nursery()

    def _tell(self, message: dict[str, Any]) -> None:
        self._port.control(message)

    # -- the worker's channel ------------------------------------------------------------------

    def _pass_on(self, *, last: bool = False) -> None:
        """Forward the worker's messages to the stream.

        :param last: the worker is dead: forward all of them, however full the stream is.
        """
        total = 0
        while self._channel is not None and (last or not self._port.full):
            try:
                data = self._channel.recv(_CHUNK)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            if data:
                self._port.data(WORKER, data)
            total += len(data)
            if not data or total > _MAX_LAST_WORDS:
                self._close_channel()
        self._watch_channel()

    def _command(self, payload: bytes) -> None:
        """Queue a command of the controller for the worker; an empty one ends the channel."""
        if payload:
            self._commands += payload
        else:
            self._commands_end = True
        self._pass_commands()

    def _pass_commands(self) -> None:
        """Write as much as fits, without waiting: a worker reads commands only between tests."""
        if self._channel is None:
            return
        with contextlib.suppress(OSError):  # buffer full, or worker dead, which shows elsewhere
            while self._commands:
                del self._commands[: self._channel.send(self._commands[:_CHUNK])]
            if self._commands_end:
                self._commands_end = False
                self._channel.shutdown(socket.SHUT_WR)

    def _watch_channel(self) -> None:
        """Wait for the events on the channel that can be handled now."""
        if self._channel is None:
            return
        events = 0 if self._port.full else selectors.EVENT_READ
        if self._commands:
            events |= selectors.EVENT_WRITE
        key = self._port.selector.get_map().get(self._channel)
        if key is not None and key.events != events:
            self._port.selector.unregister(self._channel)
            key = None
        if key is None and events:
            self._port.selector.register(self._channel, events, "channel")

    def _close_channel(self) -> None:
        assert self._channel is not None
        if self._channel in self._port.selector.get_map():
            self._port.selector.unregister(self._channel)
        self._channel.close()
        self._channel = None


def _stand_out() -> None:
    """Get priority over a thousand processes of a test, and protection from the OOM killer.

    Call it after the worker is forked, which would otherwise inherit both.
    """
    if os.environ.get(SHARED_KERNEL):
        return
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as f:
        f.write("-1000")
