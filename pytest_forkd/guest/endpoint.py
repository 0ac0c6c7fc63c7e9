"""The guest's end of an exec stream; see :mod:`pytest_forkd.channel.exchange`."""

from __future__ import annotations

from pytest_forkd.channel.exchange import Answer, Request

__all__ = ["MAX_UNREAD", "Endpoint"]

#: Most bytes from the controller to keep until they are read.
MAX_UNREAD = 4 * 1024 * 1024


class Endpoint:
    """Both directions of the stream; does no input or output itself."""

    def __init__(self) -> None:
        #: The number of the stream; 0 before the first one.
        self.generation = 0
        self._nonce = ""
        self._taken = 0
        self._unread = bytearray()
        self._start = 0
        self._unsent = bytearray()

    @property
    def unsent(self) -> int:
        """How many bytes the controller has not confirmed yet."""
        return len(self._unsent)

    @property
    def unread(self) -> int:
        """How many bytes from the controller have not been read."""
        return len(self._unread)

    def write(self, data: bytes) -> None:
        """Append data to the stream to the controller."""
        self._unsent += data

    def read(self) -> bytes:
        """What has arrived from the controller since the last call."""
        data = bytes(self._unread)
        self._unread.clear()
        return data

    def take(self, request: Request) -> str | None:
        """Take over a request's data and confirmation.

        :returns: an answer that refuses the request; ``None`` if it was accepted.
        """
        if request.generation > self.generation:
            self._open(request)
        if (request.generation, request.nonce) != (self.generation, self._nonce):
            return "superseded"
        confirmed = request.received - self._start
        if confirmed > len(self._unsent):
            return f"bad {request.received} bytes were never sent"
        if confirmed > 0:
            del self._unsent[:confirmed]
            self._start = request.received
        new = self._taken - request.sent
        if 0 <= new < len(request.data):
            room = MAX_UNREAD - len(self._unread)
            data = request.data[new : new + room]
            self._unread += data
            self._taken += len(data)
        return None

    def has_news(self, request: Request) -> bool:
        """Whether there is new data that the request asks for."""
        return request.limit > 0 and self._start + len(self._unsent) > request.received

    def answer(self, request: Request) -> str:
        """The answer to an accepted request, with the data there is now."""
        skip = request.received - self._start
        if skip < 0 or request.generation != self.generation:
            return Answer(self._taken, self._start).encode()  # a request from before
        return Answer(
            self._taken, request.received, bytes(self._unsent[skip : skip + request.limit])
        ).encode()

    def _open(self, request: Request) -> None:
        """Begin a new stream, and drop unsent data of the previous one."""
        self.generation, self._nonce = request.generation, request.nonce
        self._taken = self._start = 0
        self._unread.clear()
        self._unsent.clear()
