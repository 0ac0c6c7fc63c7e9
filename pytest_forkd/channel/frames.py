"""Control messages: JSON frames, with file descriptors beside them, over a unix stream socket.

A frame is an 8-byte header (payload length and number of descriptors, both unsigned 32-bit
big-endian) and a JSON object. Descriptors travel as ``SCM_RIGHTS`` with the frame's first byte,
so they arrive in the order of the frames that own them.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

from pytest_forkd.channel.bounds import MAX_MESSAGE_BYTES, check_json

__all__ = [
    "MAX_FRAME_BYTES",
    "DescriptorsLost",
    "Frame",
    "FrameError",
    "FrameSocket",
    "peer_uid",
    "wait_for",
]

#: A collection, which may be longer, is sent in parts.
MAX_FRAME_BYTES = MAX_MESSAGE_BYTES
#: Seconds for the peer to read something; it may be importing or collecting.
SEND_TIMEOUT = 600.0
_MAX_FDS = 16
_HEADER = struct.Struct("!II")
_CHUNK = 256 * 1024


class FrameError(Exception):
    """The peer sent something that is not a valid frame."""


class DescriptorsLost(FrameError):
    """A frame came without its descriptors: this process may not open more (RLIMIT_NOFILE).

    :ivar message: the frame's object.
    """

    def __init__(self, message: dict[str, Any]) -> None:
        super().__init__(f"[Errno {errno.EMFILE}] {os.strerror(errno.EMFILE)}")
        self.message = message


def wait_for(sock: socket.socket, event: int, timeout: float) -> None:
    """Wait until a socket is ready.

    :param event: ``select.POLLIN`` or ``select.POLLOUT``.
    :param timeout: seconds to wait at most.
    :raises TimeoutError: when it was not ready in time.
    """
    poller = select.poll()
    poller.register(sock, event)
    if not poller.poll(timeout * 1000):
        raise TimeoutError(f"nothing happened within {timeout:g} seconds")


class Frame:
    """One received message: its JSON object and the descriptors that came with it.

    The receiver owns ``fds`` and has to close them.
    """

    __slots__ = ("fds", "message")

    def __init__(self, message: dict[str, Any], fds: list[int]) -> None:
        self.message = message
        self.fds = fds


class FrameSocket:
    """Sends and receives frames over a connected ``AF_UNIX`` stream socket, which it owns."""

    def __init__(self, sock: socket.socket) -> None:
        # Non-blocking, since with settimeout() every read would wait.
        sock.setblocking(False)
        self._sock = sock
        self._buffer = bytearray()
        self._fds: collections.deque[int] = collections.deque()
        self._frames: collections.deque[Frame] = collections.deque()
        #: Why nothing more can be sent, once a frame was sent only in part.
        self._deaf = ""
        #: The peer has closed its end; what it sent before has been read.
        self.eof = False

    def fileno(self) -> int:
        """The socket's descriptor, for a selector; -1 once closed."""
        return self._sock.fileno()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one frame, waiting until the socket took it.

        :param message: a JSON-serializable object.
        :param fds: descriptors to hand over; the caller keeps its own copies.
        :raises OSError: when the peer has gone.
        :raises TimeoutError: when it has not read the frame within :data:`SEND_TIMEOUT`. Nothing
            more is sent then, since the peer would take it for the rest of that frame: it sees the
            end of the stream instead.
        """
        if self._deaf:
            raise TimeoutError(self._deaf)
        payload = json.dumps(message, separators=(",", ":")).encode("ascii")
        data = memoryview(_HEADER.pack(len(payload), len(fds)) + payload)
        pending = list(fds)
        deadline = time.monotonic() + SEND_TIMEOUT
        while data:
            try:
                sent = socket.send_fds(self._sock, [data], pending)
            except BlockingIOError:
                try:
                    wait_for(self._sock, select.POLLOUT, max(0.0, deadline - time.monotonic()))
                except TimeoutError:
                    self._deaf = f"it has not read what it was sent for {SEND_TIMEOUT:g} seconds"
                    with contextlib.suppress(OSError):
                        self._sock.shutdown(socket.SHUT_WR)
                    raise TimeoutError(self._deaf) from None
                continue
            pending = []
            data = data[sent:]

    def read_available(self) -> list[Frame]:
        """Read what has arrived without waiting, and return the frames that are complete.

        Sets :attr:`eof` when the peer has closed.

        :raises FrameError: on a frame that is too large or is not a JSON object.
        :raises DescriptorsLost: on a frame without its descriptors; the next call returns the
            frames before and after it.
        """
        while not self.eof:
            try:
                data, fds, _flags, _addr = socket.recv_fds(
                    self._sock, _CHUNK, _MAX_FDS, socket.MSG_DONTWAIT
                )
            except (BlockingIOError, InterruptedError):
                break
            except ConnectionError:
                self.eof = True
                break
            for fd in fds:
                os.set_inheritable(fd, False)
            self._fds.extend(fds)
            if not data:
                self.eof = True
                break
            self._buffer += data
            if len(data) < _CHUNK:
                break
        frames = list(self._frames)
        self._frames.clear()
        try:
            while (frame := self._take()) is not None:
                frames.append(frame)
        except DescriptorsLost:
            self._frames.extend(frames)
            while self._fds:  # it is unknown which frames these belong to
                os.close(self._fds.popleft())
            raise
        return frames

    def receive(self, timeout: float) -> Frame:
        """Wait for the next frame.

        :param timeout: seconds to wait at most.
        :raises TimeoutError: when nothing complete came in time.
        :raises EOFError: when the peer closed first.
        :raises FrameError: on a bad frame.
        """
        deadline = time.monotonic() + timeout
        while True:
            frames = self.read_available()
            if frames:
                self._frames.extend(frames[1:])
                return frames[0]
            if self.eof:
                raise EOFError("the peer closed the connection")
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError(f"no message within {timeout:g} seconds")
            wait_for(self._sock, select.POLLIN, remaining)

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took."""
        self._sock.close()
        for frame in self._frames:
            self._fds.extend(frame.fds)
        self._frames.clear()
        while self._fds:
            os.close(self._fds.popleft())

    def _take(self) -> Frame | None:
        if len(self._buffer) < _HEADER.size:
            return None
        length, fd_count = _HEADER.unpack_from(self._buffer)
        if length > MAX_FRAME_BYTES or fd_count > _MAX_FDS:
            raise FrameError(
                f"a frame of {length} bytes with {fd_count} descriptors, of which "
                f"{MAX_FRAME_BYTES} bytes and {_MAX_FDS} descriptors are allowed"
            )
        end = _HEADER.size + length
        if len(self._buffer) < end:
            return None
        try:
            payload = bytes(memoryview(self._buffer)[_HEADER.size : end])
            check_json(payload)
            message = json.loads(payload)
        except (ValueError, RecursionError) as exc:
            raise FrameError(f"a frame cannot be decoded: {exc}") from exc
        if not isinstance(message, dict):
            raise FrameError("a frame is not a JSON object")
        del self._buffer[:end]
        if fd_count > len(self._fds):
            raise DescriptorsLost(message)
        return Frame(message, [self._fds.popleft() for _ in range(fd_count)])


def peer_uid(sock: socket.socket) -> int | None:
    """The user id of the process at the other end of a connected unix socket.

    ``None`` where the system offers no way to ask (neither ``SO_PEERCRED``, see unix(7), nor
    ``LOCAL_PEERCRED``).
    """
    if hasattr(socket, "SO_PEERCRED"):
        size = struct.calcsize("3i")
        _pid, uid, _gid = struct.unpack(
            "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        return int(uid)
    if hasattr(socket, "LOCAL_PEERCRED"):
        # struct xucred of macOS and the BSDs: version, uid, ...
        data = sock.getsockopt(0, socket.LOCAL_PEERCRED, 76)
        return int(struct.unpack_from("II", data)[1])
    return None
