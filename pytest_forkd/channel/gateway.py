"""The controller's end of a worker's channel: a real execnet gateway without a thread.

xdist gives every worker a receiver thread in the controller. With one message per test, those
threads mostly wake each other up. So here the controller's main loop reads all sockets itself:
:class:`CloneGateway` starts no thread, and an :class:`~pytest_forkd.channel.event_queue.EventQueue`
reads its socket.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any

import execnet

from pytest_forkd.channel.bounds import MAX_MESSAGE_BYTES
from pytest_forkd.channel.event_queue import EventQueue
from pytest_forkd.channel.wire import CHANNEL_ID
from pytest_forkd.compat.execnet import Message, is_message_code, opcode
from pytest_forkd.compat.execnet_gateway import Gateway, RInfo, close_channels

__all__ = ["CloneGateway", "SocketIO"]

#: Bytes of commands that may be queued for a worker; no suite has enough indices to fill that.
MAX_UNSENT_BYTES = 64 * 1024 * 1024
_HEADER = struct.Struct("!bii")  # execnet's wire format: message code, channel id, payload length
_CHUNK = 256 * 1024


class SocketIO:
    """execnet's IO object over a connected stream socket, which it owns."""

    error = (OSError, EOFError)

    def __init__(self, sock: socket.socket, execmodel: Any) -> None:
        self.execmodel = execmodel
        # Non-blocking, since with settimeout() every read would wait.
        sock.setblocking(False)
        self._sock = sock
        self._buffer = bytearray()
        #: Data that did not fit into the socket's buffer yet.
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
        """Send all of ``data``, in order, without waiting.

        A worker reads nothing while a test runs, for however long that takes. So data that does not
        fit into the socket's buffer is kept until :meth:`flush` can send it.

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
        """Send as much of the kept data as fits; returns whether none is left."""
        try:
            while self.unsent:
                del self.unsent[: self._sock.send(self.unsent)]
        except BlockingIOError:
            return False
        except OSError:
            self.unsent.clear()  # the worker has gone, which the backend will report
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
                break  # first handle the messages before it: they tell which test was running
            end = position + _HEADER.size + length
            if len(view) < end:
                break
            messages.append(Message(code, channel_id, bytes(view[position + _HEADER.size : end])))
            position = end
        del self._buffer[:position]
        return messages

    def check(self) -> None:
        """Make sure that the bytes after the messages so far can be the beginning of another one.

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
    if not is_message_code(code) or length < 0:
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
    :param rinfo: what ``_rinfo()`` returns (executable, version, platform, cwd, pid). It is the
        parent's, since plugins ask for it before the clone exists.
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
        """Arrange for kept data to be sent once there is room; give up if there is too much."""
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
                    # Bypass execnet's channel: it takes a lock and unserializes the byte string.
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
            close_channels(self)
        return bool(messages)

    def drain(self) -> bool:
        """Handle everything that has arrived.

        :returns: whether the stream has ended, so that nothing more can come.
        """
        while self.read_available():
            pass
        return not self._open

    def stop_reading(self) -> None:
        """Read nothing more from the worker."""
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
_BYTES_START = 5  # after the opcode and the length


def _check(message: Message) -> None:
    """Accept only what our own workers send: a byte string on a channel, or the channel's end.

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
