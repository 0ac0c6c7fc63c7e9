"""The controller's end of a worker's channel: a real execnet gateway without a thread.

xdist gives every worker a receiver thread in the controller. With one message a test those threads
spend their time waking each other up, so here the controller's main loop reads all sockets itself:
:class:`CloneGateway` starts no thread, and :class:`EventQueue` stands where xdist's session has a
:class:`queue.Queue` and fills itself from whatever socket has something to say.
"""

from __future__ import annotations

import collections
import contextlib
import queue
import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import execnet
from execnet.gateway import Gateway, RInfo
from execnet.gateway_base import Message, opcode

from pytest_forkd.channel.bounds import MAX_MESSAGE_BYTES
from pytest_forkd.channel.wire import CHANNEL_ID

if TYPE_CHECKING:
    from execnet.gateway_base import ExecModel

__all__ = ["CloneGateway", "EventQueue", "SocketIO"]

#: Bytes of commands that may wait for a worker to read them; no suite has that many indices.
MAX_UNSENT_BYTES = 64 * 1024 * 1024
_HEADER = struct.Struct("!bii")  # execnet's wire format: message code, channel id, payload length
_CHUNK = 256 * 1024
#: Seconds that messages may gather where they come densely: nothing that a person would notice, and
#: time for some twenty tests of the shortest sort.
_GATHER = 0.004
#: Messages a second that are dense, and the seconds over which they are counted.
_DENSE = 1000
_WINDOW = 0.01


class EventQueue:
    """A queue of events, fed by ``put`` and by the readiness of registered files.

    It has the part of :class:`queue.Queue`'s interface that ``xdist.dsession.DSession`` uses.
    Everything happens in the thread that calls :meth:`get`.

    Where messages come densely it does not wait for each, but sleeps while they gather: a worker
    that sends to a process that waits for it pays for waking it, which shows where tests are short,
    and the two of them may have to share a processor.
    """

    def __init__(self) -> None:
        self._events: collections.deque[tuple[str, dict[str, Any]]] = collections.deque()
        self._later: list[tuple[float, tuple[str, dict[str, Any]]]] = []
        self._selector = selectors.DefaultSelector()
        self._arrived = 0
        self._since = time.monotonic()
        self._dense = False
        #: Called before :meth:`get` waits, which is for no longer than the seconds it returns.
        self.before_wait: Callable[[], float | None] | None = None

    def put(self, event: tuple[str, dict[str, Any]]) -> None:
        """Append an event: its name and its arguments."""
        self._events.append(event)
        self._arrived += 1

    def put_later(self, seconds: float, event: tuple[str, dict[str, Any]]) -> None:
        """Append an event once ``seconds`` have passed, or a little later."""
        self._later.append((time.monotonic() + seconds, event))

    def get(self, block: bool = True, timeout: float | None = None) -> tuple[str, dict[str, Any]]:
        """The next event.

        :param timeout: seconds to wait for one; ``None`` waits for ever.
        :raises queue.Empty: when none came in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._events:
            if block and self._is_dense():
                time.sleep(_GATHER)
            self.poll(self._patience(deadline) if block else 0)
            self._put_due()
            if not self._events and (
                not block or (deadline is not None and time.monotonic() >= deadline)
            ):
                raise queue.Empty
        return self._events.popleft()

    def _is_dense(self) -> bool:
        """Whether messages come densely, as it was found when they were last counted."""
        now = time.monotonic()
        elapsed = now - self._since
        if elapsed >= _WINDOW:
            self._dense = self._arrived > elapsed * _DENSE
            self._since, self._arrived = now, 0
        return self._dense

    def _patience(self, deadline: float | None) -> float | None:
        """Seconds until something has to be done, whatever comes; ``None`` if nothing has to be."""
        limits = [when for when, _event in self._later]
        if deadline is not None:
            limits.append(deadline)
        if self.before_wait is not None:
            seconds = self.before_wait()
            if seconds is not None:
                limits.append(time.monotonic() + seconds)
        return max(0.0, min(limits) - time.monotonic()) if limits else None

    def _put_due(self) -> None:
        if self._later:
            now = time.monotonic()
            self._events.extend(event for when, event in self._later if when <= now)
            self._later = [entry for entry in self._later if entry[0] > now]

    def poll(self, timeout: float | None) -> None:
        """Wait for a registered file to be ready and let its callback run."""
        for key, _mask in self._selector.select(timeout):
            key.data()

    def register(self, fileobj: Any, callback: Callable[[], object]) -> None:
        """Call ``callback`` whenever ``fileobj`` can be read, until :meth:`unregister`."""
        self._selector.register(fileobj, selectors.EVENT_READ, callback)

    def watch_room(self, fileobj: Any, wanted: bool) -> None:
        """Call the callback of a registered file when it can be written to, too, or no longer."""
        with contextlib.suppress(KeyError, ValueError):
            key = self._selector.get_key(fileobj)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
            self._selector.modify(fileobj, events, key.data)

    def unregister(self, fileobj: Any) -> None:
        """Forget ``fileobj``; nothing happens if it is not registered (any more)."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fileobj)

    def close(self) -> None:
        """Forget everything."""
        self._events.clear()
        self._later.clear()
        self._selector.close()


class SocketIO:
    """execnet's IO object over a connected stream socket, which it owns."""

    error = (OSError, EOFError)

    def __init__(self, sock: socket.socket, execmodel: ExecModel) -> None:
        self.execmodel = execmodel
        # Non-blocking, since a timeout of the socket's own would make every read wait.
        sock.setblocking(False)
        self._sock = sock
        self._buffer = bytearray()
        #: What the worker has not read yet, and there was no room for.
        self.unsent = bytearray()
        #: Called whenever :attr:`unsent` grows.
        self.on_unsent: Callable[[], None] | None = None

    def fileno(self) -> int:
        """The socket's descriptor; -1 once closed."""
        return self._sock.fileno()

    def read(self, numbytes: int) -> bytes:
        """Not used: :meth:`receive` reads, from the main loop."""
        raise NotImplementedError("a clone's gateway has no receiver thread")

    def write(self, data: bytes) -> None:
        """Send ``data`` whole, after all that was to be sent before; does not wait.

        A worker is deaf while a test runs, for however long that takes. So what there is no room
        for is kept, and goes ahead of whatever comes later: see :meth:`flush`.

        :raises OSError: if the worker is gone.
        """
        if not self.unsent:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        self.unsent += data
        if self.on_unsent is not None:
            self.on_unsent()

    def flush(self) -> bool:
        """Send what was kept, as far as there is room; returns whether nothing is left."""
        try:
            while self.unsent:
                del self.unsent[: self._sock.send(self.unsent)]
        except BlockingIOError:
            return False
        except OSError:
            self.unsent.clear()  # the worker has gone, which is told by who waits for it
        return True

    def receive(self) -> tuple[list[Message], bool]:
        """Read what has arrived, without waiting.

        :returns: the complete messages, and whether the peer has closed. Once they are handled,
            call :meth:`check`.
        """
        eof = False
        while True:
            try:
                data = self._sock.recv(_CHUNK, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                eof = True
                break
            if not data:
                eof = True
                break
            self._buffer += data
            if len(data) < _CHUNK or len(self._buffer) > MAX_MESSAGE_BYTES:
                break
        return self._take(), eof

    def _take(self) -> list[Message]:
        messages = []
        position = 0
        view = self._buffer
        while len(view) - position >= _HEADER.size:
            code, channel_id, length = _HEADER.unpack_from(view, position)
            if _complaint(code, length) is not None:
                break  # those before it tell what was running; see check()
            end = position + _HEADER.size + length
            if len(view) < end:
                break
            messages.append(Message(code, channel_id, bytes(view[position + _HEADER.size : end])))
            position = end
        del self._buffer[:position]
        return messages

    def check(self) -> None:
        """Make sure that what follows the messages so far is the beginning of another one.

        :raises ValueError: if no worker of ours would send it.
        """
        if len(self._buffer) >= _HEADER.size:
            code, _channel_id, length = _HEADER.unpack_from(self._buffer)
            complaint = _complaint(code, length)
            if complaint is not None:
                raise ValueError(complaint)

    def close_read(self) -> None:
        """Close the socket (execnet calls this and :meth:`close_write` at the end)."""
        self._sock.close()

    def close_write(self) -> None:
        """Tell the worker that nothing more comes."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def wait(self) -> None:
        """Nothing to wait for: the backend owns the process."""

    def kill(self) -> None:
        """Nothing to kill: the backend owns the process."""


def _complaint(code: int, length: int) -> str | None:
    """What is wrong with a message's header."""
    if code not in Message._types or length < 0:
        return f"no message has type {code} and {length} bytes"
    if length > MAX_MESSAGE_BYTES:
        return (
            f"a message of {length} bytes, of which {MAX_MESSAGE_BYTES} are allowed; "
            "does a test print that much?"
        )
    return None


class CloneGateway(Gateway):
    """An execnet gateway to a worker that is a clone.

    :param io: the channel's socket.
    :param spec: xdist's specification of the node; ``spec.id`` is the worker's name.
    :param events: the controller's main loop.
    :param rinfo: what ``_rinfo()`` answers (executable, version, platform, cwd, pid): plugins ask
        for it while the clone does not exist yet, and it is the parent's anyway.
    """

    def __init__(
        self, io: SocketIO, spec: execnet.XSpec, events: EventQueue, rinfo: dict[str, Any]
    ) -> None:
        super().__init__(io, spec)
        self._clone_io = io
        self._events = events
        self._cache_rinfo = RInfo(rinfo)
        #: Called with a description when the worker broke the protocol.
        self.on_protocol_error: Callable[[str], None] | None = None
        #: Called with a description when the worker does not read what it is sent.
        self.on_deaf: Callable[[str], None] | None = None
        #: Called with each byte string that comes on the worker's channel.
        self.on_message: Callable[[bytes], object] | None = None
        self._open = True
        io.on_unsent = self._keep_unsent
        events.register(io.fileno(), self.read_available)

    def _initreceive(self) -> None:
        """Start no receiver thread: :meth:`read_available` is called by the main loop."""

    def _keep_unsent(self) -> None:
        """See that what was kept is sent once there is room, and that it does not grow forever."""
        unsent = len(self._clone_io.unsent)
        if unsent <= MAX_UNSENT_BYTES:
            self._events.watch_room(self._clone_io.fileno(), True)
            return
        self.stop_reading()
        self._clone_io.close_write()  # nothing may follow half a message
        self._clone_io.unsent.clear()
        if self.on_deaf is not None:
            self.on_deaf(f"it has not read {unsent} bytes that it was sent")

    def remote_exec(self, source: object, **kwargs: object) -> Any:
        """Refused: a clone gets its code from the parent, not from the controller.

        :raises RuntimeError: always, naming what to use instead.
        """
        raise RuntimeError(
            f"pytest-forkd: gateway.remote_exec() is not available for worker {self.id}, which is "
            "a clone of a prewarmed parent; implement pytest_forkd_worker_start(config, "
            "workerinput) in a conftest.py or plugin to run code in each worker"
        )

    def read_available(self) -> bool:
        """Handle messages that have arrived.

        :returns: whether there was anything.
        """
        if not self._open:
            return False
        if self._clone_io.unsent and self._clone_io.flush():
            self._events.watch_room(self._clone_io.fileno(), False)
        try:
            messages, eof = self._clone_io.receive()
            for message in messages:
                _check(message)
                if (
                    message.msgcode == Message.CHANNEL_DATA
                    and message.channelid == CHANNEL_ID
                    and self.on_message is not None
                ):
                    # Not through execnet's channel, which takes a lock and loads the byte string
                    # piece by piece.
                    self.on_message(message.data[_BYTES_START:-1])
                else:
                    message.received(self)
            self._clone_io.check()
        except Exception as exc:
            self.stop_reading()
            if self.on_protocol_error is not None:
                self.on_protocol_error(f"{type(exc).__name__}: {exc}")
            return False
        if eof:
            self.stop_reading()
            self._channelfactory._finished_receiving()
        return bool(messages)

    def drain(self) -> bool:
        """Handle everything that has arrived.

        :returns: whether the stream has ended, so that nothing more can come.
        """
        while self.read_available():
            pass
        return not self._open

    def stop_reading(self) -> None:
        """Look at nothing more that the worker sends."""
        if self._open:
            self._open = False
            self._events.unregister(self._clone_io.fileno())

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        self.stop_reading()
        self._clone_io.close_read()


_FROM_WORKER = frozenset(
    {Message.CHANNEL_DATA, Message.CHANNEL_CLOSE, Message.CHANNEL_LAST_MESSAGE}
)
_INT4 = struct.Struct("!i")
_BYTES_START = 5  # behind the opcode and the length


def _check(message: Message) -> None:
    """Let through only what a worker of ours sends: bytes on a channel, or the channel's end.

    execnet would build whatever object the data describes, such as a list of two billion items.

    :raises ValueError: for anything else.
    """
    if message.msgcode not in _FROM_WORKER:
        raise ValueError(f"a worker may not send {message!r}")
    if message.msgcode == Message.CHANNEL_DATA:
        data = message.data
        if (
            len(data) < 6
            or data[:1] != opcode.BYTES
            or data[-1:] != opcode.STOP
            or _INT4.unpack_from(data, 1)[0] != len(data) - 6
        ):
            raise ValueError("a message is no byte string")
