"""The guest's end of its stream, served over a unix socket that the relay connects to."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from typing import Any

from pytest_forkd.channel.exchange import BadExchange, Request
from pytest_forkd.channel.mux import (
    CONTROL,
    FILES,
    WORKER,
    Demultiplexer,
    control_frame,
    data_frames,
)
from pytest_forkd.guest.endpoint import Endpoint

__all__ = ["MAX_UNSENT", "Port"]

#: Unsent bytes for the controller after which nothing more is read from the worker.
MAX_UNSENT = 4 * 1024 * 1024
#: Longest line of an exchange; the daemon refuses requests of 2 MB anyway.
_MAX_LINE = 4 * 1024 * 1024
#: Seconds between answers with data, unless there is much data: each costs a round trip.
_COALESCE = 0.005
_MUCH = 64 * 1024
#: Seconds for the relay to take an answer.
_ANSWER_LIMIT = 2.0
_CHUNK = 256 * 1024


class _Relay:
    """A connection of the relay: one request, one answer."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray()
        self.request: Request | None = None
        self.deadline = 0.0


class Port:
    """Sends and receives frames, but only while :meth:`wait` is running.

    The selector uses poll(2), not epoll(7), whose descriptor a fork would share.

    :param listener: a listening unix socket, which it owns.
    """

    def __init__(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._endpoint = Endpoint()
        self._demultiplexer = Demultiplexer(CONTROL, WORKER, FILES)
        self._relays: list[_Relay] = []
        self._answered = 0.0
        #: The last stream reported by :meth:`opened`, and the one that is being read.
        self._generation = 0
        self._reading = 0
        #: Register other files to wait for here; their data must not be callable.
        self.selector = selectors.PollSelector()
        self.selector.register(listener, selectors.EVENT_READ, self._accept)

    @property
    def full(self) -> bool:
        """Whether nothing more should be written until the controller has read something."""
        return self._endpoint.unsent >= MAX_UNSENT

    @property
    def pending(self) -> bool:
        """Whether the controller has not confirmed all that was written."""
        return self._endpoint.unsent > 0

    def opened(self) -> bool:
        """Whether a new stream has been opened since the last call."""
        if self._generation == self._endpoint.generation:
            return False
        self._generation = self._endpoint.generation
        return True

    def control(self, message: dict[str, Any]) -> None:
        """Write a control message."""
        self._endpoint.write(control_frame(message))

    def data(self, channel: int, data: bytes) -> None:
        """Write data to another channel."""
        self._endpoint.write(data_frames(channel, data))

    def frames(self) -> list[tuple[int, bytes]]:
        """The frames that have arrived.

        :raises FrameError: on a frame that no controller would send.
        """
        if self._reading != self._endpoint.generation:
            self._reading = self._endpoint.generation
            self._demultiplexer.reset()
        return self._demultiplexer.feed(self._endpoint.read())

    def wait(self, timeout: float | None) -> list[Any]:
        """Serve exchanges until there is something to do.

        :param timeout: seconds to wait at most.
        :returns: the data of other registered files that are ready.
        """
        now = time.monotonic()
        deadlines = [self._due(relay, now) for relay in self._relays if relay.request]
        if timeout is not None:
            deadlines.append(now + timeout)
        limit = max(0.0, min(deadlines) - now) if deadlines else None
        if self._endpoint.unread or self._generation != self._endpoint.generation:
            limit = 0.0  # something arrived during flush() and has not been handled
        others = []
        for key, _mask in self.selector.select(limit):
            if isinstance(key.data, _Relay):
                self._read(key.data)
            elif callable(key.data):
                key.data()
            else:
                others.append(key.data)
        now = time.monotonic()
        for relay in [relay for relay in self._relays if relay.request]:
            if self._due(relay, now) <= now:
                self._answer(relay, now)
        return others

    def flush(self, limit: float) -> bool:
        """Wait until the controller has all that was written.

        :param limit: seconds to wait at most.
        :returns: whether it has.
        """
        deadline = time.monotonic() + limit
        while self.pending and time.monotonic() < deadline:
            self.wait(0.5)
        return not self.pending

    def close(self) -> None:
        """In a worker: close every socket, since they belong to the collector."""
        self.selector.close()
        self._listener.close()
        for relay in self._relays:
            relay.sock.close()
        self._relays.clear()

    # -- exchanges -----------------------------------------------------------------------------

    def _due(self, relay: _Relay, now: float) -> float:
        """The time at which to answer a request."""
        assert relay.request is not None
        if relay.request.data or relay.request.generation != self._endpoint.generation:
            return now
        if self._endpoint.has_news(relay.request):
            if self._endpoint.unsent >= _MUCH:
                return now
            return min(relay.deadline, max(now, self._answered + _COALESCE))
        return relay.deadline

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            sock, _address = self._listener.accept()
            sock.setblocking(False)
            relay = _Relay(sock)
            self._relays.append(relay)
            self.selector.register(sock, selectors.EVENT_READ, relay)

    def _read(self, relay: _Relay) -> None:
        try:
            data = relay.sock.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        relay.buffer += data
        if not data or len(relay.buffer) > _MAX_LINE or relay.request is not None:
            self._drop(relay)  # the relay has gone, or breaks the protocol
            return
        if not data.endswith(b"\n"):
            return
        try:
            request = Request.decode(relay.buffer[:-1].decode("ascii"))
        except (BadExchange, UnicodeDecodeError) as exc:
            self._reply(relay, f"bad {exc}")
            return
        relay.buffer.clear()
        refusal = self._endpoint.take(request)
        if refusal is not None:
            self._reply(relay, refusal)
            return
        relay.request = request
        relay.deadline = time.monotonic() + request.wait

    def _answer(self, relay: _Relay, now: float) -> None:
        assert relay.request is not None
        if self._endpoint.has_news(relay.request):
            self._answered = now
        self._reply(relay, self._endpoint.answer(relay.request))

    def _reply(self, relay: _Relay, line: str) -> None:
        with contextlib.suppress(OSError):  # if the relay has gone, the controller retries
            relay.sock.settimeout(_ANSWER_LIMIT)
            relay.sock.sendall(line.encode("ascii", "replace") + b"\n")
        self._drop(relay)

    def _drop(self, relay: _Relay) -> None:
        self.selector.unregister(relay.sock)
        self._relays.remove(relay)
        relay.sock.close()
