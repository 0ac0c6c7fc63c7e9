"""The worker's end of its channel: execnet's wire messages, without a thread.

Tests run in the main thread of a process that has no other thread, so the worker looks for
commands between tests, or waits for one when it has nothing to do.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

from pytest_forkd.compat.execnet import Message, opcode

__all__ = ["CHANNEL_ID", "ChannelClosed", "WorkerChannel"]

#: The first channel that a controller's gateway opens (execnet counts 1, 3, 5, ...).
CHANNEL_ID = 1
_HEADER = struct.Struct("!bii")
#: Starts a message's data: execnet serializes a byte string as opcode, length, bytes and an end.
_BYTES = struct.Struct("!ci")
_CHUNK = 64 * 1024
# Looked up before the first test: tests may patch these modules and leave them patched.
_DONT_WAIT = socket.MSG_DONTWAIT
_scan: Any = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class ChannelClosed(Exception):
    """The controller has gone, or does not need this worker any more."""


class WorkerChannel:
    """Sends batches of events and receives commands over a socket that it owns."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._closed = False

    def send(self, payload: bytes) -> None:
        """Send one message, waiting until the socket took it.

        :raises OSError: if the controller is gone.
        """
        data = _BYTES.pack(opcode.BYTES, len(payload)) + payload + opcode.STOP
        self._sock.sendall(_HEADER.pack(Message.CHANNEL_DATA, CHANNEL_ID, len(data)) + data)

    def commands(self, *, wait: bool) -> list[tuple[str, dict[str, Any]]]:
        """The commands that have arrived: names and arguments.

        :param wait: wait for at least one. The wait ends when the controller goes away, which
            closes the socket.
        :raises ChannelClosed: when the controller has closed the channel and no command is left.
        """
        while True:
            found = self._take()
            if found:
                return found
            if self._closed:
                raise ChannelClosed
            try:
                data = self._sock.recv(_CHUNK, 0 if wait else _DONT_WAIT)
            except (BlockingIOError, InterruptedError):
                return []
            except ConnectionError:
                data = b""
            if not data:
                self._closed = True
            self._buffer += data

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def _take(self) -> list[tuple[str, dict[str, Any]]]:
        found = []
        while len(self._buffer) >= _HEADER.size:
            code, _channel_id, length = _HEADER.unpack_from(self._buffer)
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            if code == Message.CHANNEL_DATA:
                text = payload[_BYTES.size : -len(opcode.STOP)].decode("ascii")
                (name, kwargs), _end = _scan(text, 0)
                found.append((name, kwargs))
            elif code in (
                Message.CHANNEL_CLOSE,
                Message.CHANNEL_CLOSE_ERROR,
                Message.CHANNEL_LAST_MESSAGE,
                Message.GATEWAY_TERMINATE,
            ):
                self._closed = True
        return found
