"""One machine, as the controller sees it: its stream, its worker's channel, and what it says."""

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

#: Seconds for a guest to answer what takes it no time.
ANSWER_LIMIT = 60.0
#: Seconds for a message and its answer that a guest's clock may be late by, and how often to try.
_CLOCK_LIMIT = 0.06
_CLOCK_TRIES = 5
#: Bytes that wait to be sent before who sends files has to wait, too.
_MAX_QUEUED = 8 * 1024 * 1024
#: Bytes of standard error that a guest passes on (see ``guest/nursery.py``).
_MAX_STDERR = 64 * 1024 * 1024
_CHUNK = 256 * 1024


class MachineError(Exception):
    """A machine is of no use, or not any more; the message says why.

    :ivar fatal: no other one would be of use either.
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

        :param timeout: seconds after which there may be none.
        """

    def confirm(self) -> None:
        """Let the guest know that all has been received; raises StreamError."""

    def close(self) -> None:
        """Let both end soon."""


class Machine:
    """A guest that is set up in a thread of its own, and then serves one worker.

    Two threads per machine: one receives and, at first, sets up; the other sends. What the guest
    says goes to ``tell``, from the receiving thread, as a name and a checked value; the end of it
    all is ``lost`` with the reason, or ``fatal`` if no other machine would be of use.

    :param name: for messages to the user.
    :param connect: makes the link; called in the receiving thread, where it may wait.
    :param set_up: what to do before anything that the guest says is passed on, such as sending the
        working tree; called in the receiving thread.
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
        #: Whether the guest still answers; from when it has said that its worker exists.
        self._pulse: Pulse | None = None

    def start(self) -> None:
        """Connect, set up and serve, in threads."""
        self._threads[0].start()

    def attach(self, channel: socket.socket) -> None:
        """Pass on what comes on a worker's channel, of which it keeps a copy, and the other way."""
        self._channel = channel.dup()
        self._channel.setblocking(True)
        self._nudge()

    def post(self, message: dict[str, Any]) -> None:
        """Send a control message, without waiting."""
        self._enqueue(control_frame(message))

    def send_files(self, pieces: Iterable[bytes], limit: float) -> None:
        """Send bytes of files; waits while there is much to send.

        :param limit: seconds for the guest to take all but the last of it.
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
        """Send a control message and wait for the answer; for the set-up only.

        :param names: what the answer may be; everything else is passed over.
        :param limit: seconds.
        :raises MachineError: if there is none.
        """
        self.post(message)
        return self.expect(*names, limit=limit)

    def expect(self, *names: str, limit: float = ANSWER_LIMIT) -> tuple[str, Any]:
        """Wait for a message; for the set-up only; see :meth:`ask`."""
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
        """Make the guest one of its own; returns what it is.

        Its clock is late by the time that the message took. A guest that has just been restored
        reads its memory for the first time and is slow, so it is told again until it was quick.

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
        """Let go of it: nothing is told or passed on any more. Does not wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._link is not None:
            self._link.close()
        if self._channel is not None:
            # Wakes who is writing into it; the other end sees the end of the stream.
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
            if self._over:  # in the meantime, by who could not close the link
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
        """Pass a message on; returns whether nothing more is to be received.

        A machine that is about to be cloned must not have anybody waiting for an answer.
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
        """Wait for messages, and see that a guest with a worker does not fall silent.

        :raises Silent: if it does.
        """
        if self._pulse is None:
            return self._receive()  # until it is closed; see Entry.watch()
        assert self._link is not None
        begin = time.monotonic()
        data = self._link.receive(self._pulse.patience)
        waited = time.monotonic() - begin
        messages = self._take(data)  # which may hold the answer, and may have to wait for others
        if ("pong", self._pulse.number) not in messages:
            number = self._pulse.waited(waited)
            if number is not None:
                self.post({"ping": number})
        return messages

    def _receive(self, timeout: float | None = None) -> list[tuple[str, Any]]:
        """Wait for bytes; pass on what is no control message, and return those that are."""
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
        with contextlib.suppress(OSError):  # nobody listens to that worker any more
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
    """Show what a guest's worker has written to standard error, as a fork of this process would."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]
