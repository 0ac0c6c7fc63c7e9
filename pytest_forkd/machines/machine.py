"""The controller's side of one machine: its stream, its worker's channel, and its messages."""

from __future__ import annotations

import base64
import collections
import contextlib
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from pytest_forkd.channel.collector_messages import Collected
from pytest_forkd.channel.exec_stream import StreamError
from pytest_forkd.channel.frames import FrameError
from pytest_forkd.channel.mux import (
    CONTROL,
    FILES,
    STDERR,
    WORKER,
    Demultiplexer,
    control_frame,
    data_frames,
    parse_control,
)
from pytest_forkd.machines.guest_messages import NO_SESSION, check
from pytest_forkd.machines.pulse import Pulse, Silent
from pytest_forkd.runtime.wakeup import Wakeup

__all__ = ["Link", "Machine", "MachineError"]

#: Seconds for a guest to answer a request that takes it no time.
ANSWER_LIMIT = 60.0
#: The guest's clock is late by the time its message took. Seconds that a message and its answer may
#: take, and how often to try.
_CLOCK_LIMIT = 0.06
_CLOCK_TRIES = 5
#: Queued bytes above which :meth:`Machine.send_files` waits.
_MAX_QUEUED = 8 * 1024 * 1024
#: Bytes of standard error that a guest passes on (see ``guest/nursery.py``).
_MAX_STDERR = 64 * 1024 * 1024
_CHUNK = 256 * 1024


class MachineError(Exception):
    """A machine cannot be used, or has been lost; the message says why.

    :ivar fatal: whether no other machine would work, either.
    """

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


class Link(Protocol):
    """A byte stream to a guest. One thread sends, another one receives."""

    def send(self, data: bytes) -> None:
        """Send all of it; raises StreamError."""

    def receive(self, timeout: float | None = None) -> bytes:
        """Wait for at least one byte; raises StreamError.

        :param timeout: seconds after which it returns nothing; ``None`` means no limit.
        """

    def confirm(self) -> None:
        """Tell the guest that everything so far has been received; raises StreamError."""

    def close(self) -> None:
        """Make both methods end soon."""


class Machine:
    """A guest that is set up in a thread of its own, and then serves one worker.

    Two threads per machine: one sets up and then receives, the other one sends. The receiving
    thread passes the guest's messages to ``tell``, each as a name and a checked value. The last one
    is ``lost`` with a reason, or ``fatal`` if no other machine would work, either.

    :param name: for messages to the user.
    :param connect: makes the link; called in the receiving thread, where it may wait.
    :param set_up: called in the receiving thread before any message is passed on, for example to
        send the working tree.
    :param tell: called with the machine, a message's name and its value.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Link],
        set_up: Callable[[Machine], None],
        tell: Callable[[Machine, str, Any], None],
    ) -> None:
        self.name = name
        self._connect = connect
        self._set_up = set_up
        self._tell = tell
        self._link: Link | None = None
        self._received: collections.deque[tuple[str, Any]] = collections.deque()
        self._collected = Collected()
        self._demultiplexer = Demultiplexer(CONTROL, WORKER, STDERR)
        self._channel: socket.socket | None = None
        self._stderr = 0
        self._queue: collections.deque[bytes] = collections.deque()
        self._queued = 0
        self._changed = threading.Condition()
        self._wakeup = Wakeup()
        self._closed = False
        self._lost = False
        self._threads = [
            threading.Thread(target=target, name=f"forkd-{name}-{what}", daemon=True)
            for target, what in ((self._receive_all, "receive"), (self._send_all, "send"))
        ]
        #: The worker that it serves.
        self.worker: str | None = None
        #: Watches whether the guest still answers, once its worker exists.
        self._pulse: Pulse | None = None

    def start(self) -> None:
        """Connect, set up and serve, in threads."""
        self._threads[0].start()

    def attach(self, channel: socket.socket) -> None:
        """Forward a worker's channel to the guest and back; keeps a duplicate of the socket."""
        self._channel = channel.dup()
        self._channel.setblocking(True)
        self._nudge()

    def post(self, message: dict[str, Any]) -> None:
        """Send a control message, without waiting."""
        self._enqueue(control_frame(message))

    def send_files(self, pieces: Iterable[bytes], limit: float) -> None:
        """Send bytes of files; waits while too much is queued.

        :param limit: seconds until all of it must be queued, most of it sent.
        :raises MachineError: if the machine has gone, or reads too slowly.
        """
        deadline = time.monotonic() + limit
        for piece in pieces:
            with self._changed:
                ready = self._changed.wait_for(
                    lambda: self._queued <= _MAX_QUEUED or self._over,
                    max(0.0, deadline - time.monotonic()),
                )
            if self._over:
                raise MachineError(f"{self.name} has gone")
            if not ready:
                raise MachineError(f"it has not read the working tree within {limit:g} seconds")
            self._enqueue(data_frames(FILES, piece))

    @property
    def _over(self) -> bool:
        return self._closed or self._lost

    def ask(
        self, message: dict[str, Any], *names: str, limit: float = ANSWER_LIMIT
    ) -> tuple[str, Any]:
        """Send a control message and wait for the answer; only during set-up.

        :param names: the expected answers; other messages are ignored.
        :param limit: seconds to wait.
        :raises MachineError: if there is no answer.
        """
        self.post(message)
        return self.expect(*names, limit=limit)

    def expect(self, *names: str, limit: float = ANSWER_LIMIT) -> tuple[str, Any]:
        """Wait for a message; only during set-up; see :meth:`ask`."""
        deadline = time.monotonic() + limit
        while True:
            while self._received:
                name, value = self._received.popleft()
                if name in names:
                    return name, value
                if name == "over" or name in NO_SESSION:
                    raise MachineError(f"its parent has ended: {value}")
            left = deadline - time.monotonic()
            if left <= 0:
                raise MachineError(f"it did not say {' or '.join(names)} within {limit:g} seconds")
            self._received.extend(self._receive(left))

    def restore(self) -> dict[str, Any]:
        """Make the guest different from other clones; returns its ``hello``.

        The guest's clock is late by the time that the message took. A guest that has just been
        restored is slow, since it reads its memory from the snapshot. So repeat the message until
        it is answered quickly.

        :raises MachineError: if it does not answer.
        """
        hostname = f"forkd-{secrets.token_hex(4)}"
        hello: dict[str, Any] = {}
        deadline = time.monotonic() + ANSWER_LIMIT
        for _ in range(_CLOCK_TRIES):
            begin = time.monotonic()
            self.post(
                {
                    "restore": {
                        "time": time.time(),
                        "seed": base64.b64encode(secrets.token_bytes(64)).decode("ascii"),
                        "hostname": hostname,
                    }
                }
            )
            hello = hello or self.expect("hello")[1]
            failed = self.expect("restored")[1]
            now = time.monotonic()
            if "clock" in failed or now - begin <= _CLOCK_LIMIT or now > deadline:
                break
        return hello

    def close(self) -> None:
        """Stop passing on messages and data; does not wait for the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._link is not None:
            self._link.close()
        if self._channel is not None:
            # Wakes a thread that is writing to it; the other end sees the end of the stream.
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)
        self._nudge()

    def join(self, deadline: float) -> None:
        """Wait until its threads have ended.

        :param deadline: by ``time.monotonic()``.
        """
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    # -- threads -------------------------------------------------------------------------------

    def _receive_all(self) -> None:
        try:
            self._link = self._connect()
            if self._over:  # closed while connecting, when close() had no link to close
                self._link.close()
                return
            self._threads[1].start()
            self._set_up(self)
            paused = False
            while not (self._closed or paused):
                while self._received and not paused:
                    paused = self._say(*self._received.popleft())
                if not paused:
                    self._received.extend(self._listen())
        except MachineError as exc:
            self._lose(str(exc), "fatal" if exc.fatal else "lost")
        except (StreamError, Silent) as exc:
            self._lose(str(exc))
        except FrameError as exc:
            self._lose(f"it sent what no guest of ours would send ({exc})")
        except Exception as exc:
            self._lose(f"{type(exc).__name__}: {exc}")

    def _say(self, name: str, value: Any) -> bool:
        """Pass a message on; returns whether to stop receiving.

        No exchange may be in progress in a machine of which a snapshot is made.
        """
        if self._closed:
            return True
        if name == "pong":
            if self._pulse is None:
                raise FrameError("it answers, and was asked nothing")
            self._pulse.answered(value)
            return False
        if name == "forked" and self._pulse is None:
            self._pulse = Pulse()
        collected: bool = name == "warm" and value["level"] == "collection"
        if collected:
            assert self._link is not None
            self._link.confirm()
        self._tell(self, name, value)
        return collected

    def _listen(self) -> list[tuple[str, Any]]:
        """Wait for messages, and check that a guest with a worker still answers.

        :raises Silent: if it does not.
        """
        if self._pulse is None:
            return self._receive()  # until it is closed; see KnownMachine.watch()
        assert self._link is not None
        begin = time.monotonic()
        data = self._link.receive(self._pulse.patience)
        waited = time.monotonic() - begin
        messages = self._take(data)  # may block on the worker's channel, so it is not timed
        if ("pong", self._pulse.number) not in messages:
            number = self._pulse.waited(waited)
            if number is not None:
                self.post({"ping": number})
        return messages

    def _receive(self, timeout: float | None = None) -> list[tuple[str, Any]]:
        """Wait for data; forward the other channels, and return the control messages."""
        assert self._link is not None
        return self._take(self._link.receive(timeout))

    def _take(self, data: bytes) -> list[tuple[str, Any]]:
        messages = []
        for channel, payload in self._demultiplexer.feed(data):
            if channel == CONTROL:
                name, value = check(parse_control(payload))
                if not self._collected.take(name, value):
                    messages.append((name, value))
            elif channel == WORKER:
                self._pass_on(payload)
            elif channel == STDERR:
                self._stderr += len(payload)
                if self._stderr > _MAX_STDERR:
                    raise FrameError(f"more than {_MAX_STDERR} bytes of standard error")
                _write_stderr(payload)
        return messages

    def _pass_on(self, payload: bytes) -> None:
        if self._channel is None:
            raise FrameError("it speaks for a worker that it was not asked for")
        with contextlib.suppress(OSError):  # the controller has closed the worker's channel
            self._channel.sendall(payload)

    def _send_all(self) -> None:
        poller = select.poll()
        poller.register(self._wakeup, select.POLLIN)
        listening: socket.socket | None = None
        try:
            while not self._closed:
                if listening is None and self._channel is not None:
                    listening = self._channel
                    poller.register(listening, select.POLLIN)
                ready = {fd for fd, _event in poller.poll(1000)}
                with contextlib.suppress(BlockingIOError):
                    if self._wakeup.fileno() in ready:
                        self._wakeup.take()
                with self._changed:
                    data = b"".join(self._queue)
                    self._queue.clear()
                    self._queued = 0
                    self._changed.notify_all()
                if listening is not None and listening.fileno() in ready:
                    command = listening.recv(_CHUNK)
                    data += data_frames(WORKER, command)
                    if not command:
                        poller.unregister(listening)
                if data and self._link is not None:
                    self._link.send(data)
        except StreamError as exc:
            self._lose(str(exc))
        except Exception as exc:
            self._lose(f"{type(exc).__name__}: {exc}")

    def _lose(self, reason: str, what: str = "lost") -> None:
        with self._changed:
            if self._closed or self._lost:
                return
            self._lost = True
            self._changed.notify_all()
        self._tell(self, what, reason)

    def _enqueue(self, data: bytes) -> None:
        with self._changed:
            self._queue.append(data)
            self._queued += len(data)
        self._nudge()

    def _nudge(self) -> None:
        self._wakeup.wake()

    def release(self) -> None:
        """Close its sockets, once its threads have ended."""
        for sock in (self._wakeup, self._channel):
            if sock is not None:
                sock.close()


def _write_stderr(data: bytes) -> None:
    """Write a guest's standard error to our own, where a forked worker's would go, too."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]
