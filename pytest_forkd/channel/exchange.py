"""The text of an exchange: what each end of an exec stream tells the other.

An exchange is a line of ASCII that asks and a line that answers, so that it survives a guest agent
that decodes output as UTF-8 and a daemon that wraps it in JSON. The request, its fields separated
by spaces::

    x1 SESSION SENT RECEIVED WAIT LIMIT CRC DATA

``SESSION`` is a number, larger than that of any stream that the guest has had before, a hyphen and
random digits. ``DATA`` (base64) are the bytes of the stream to the guest from byte number ``SENT``
on. Of the stream from the guest, the first ``RECEIVED`` bytes have arrived. The guest answers at
once if it has more, or if data came along; else after ``WAIT`` milliseconds at most::

    ok TAKEN START CRC DATA

``TAKEN`` bytes have arrived at the guest, in all. ``DATA``, at most ``LIMIT`` bytes, are those from
byte number ``START`` on. Since bytes are numbered, an exchange may be lost, repeated, delayed or
overtaken by another one: what has been seen before is ignored.

Other answers: ``superseded`` (a newer stream has been opened), ``bad TEXT`` (not a request); and,
from the relay in the guest: ``busy`` (whoever should answer is not listening just now) and ``gone
TEXT`` (there is nobody to answer).
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass

__all__ = ["Answer", "BadExchange", "Request"]


class BadExchange(ValueError):
    """The text is no request, or no answer."""


def _pack(data: bytes) -> str:
    return f"{zlib.crc32(data)} {base64.b64encode(data).decode('ascii')}"


def _unpack(crc: str, text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadExchange(f"not base64: {exc}") from exc
    if zlib.crc32(data) != _number(crc):
        raise BadExchange("the checksum is wrong: something was lost or changed")
    return data


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadExchange(f"{text[:40]!r} is no number")
    return int(text)


@dataclass(frozen=True)
class Request:
    """What the controller says.

    :ivar generation: the number of the stream.
    :ivar nonce: random, so that two streams with the same number are told apart.
    :ivar sent: the number of the first byte in ``data``.
    :ivar received: how many of the guest's bytes have arrived.
    :ivar wait: seconds that the guest may wait for something to answer with.
    :ivar limit: how many bytes the answer may hold.
    """

    generation: int
    nonce: str
    sent: int = 0
    received: int = 0
    wait: float = 0.0
    limit: int = 0
    data: bytes = b""

    def encode(self) -> str:
        """The request as a line of ASCII, without the line's end."""
        return (
            f"x1 {self.generation}-{self.nonce} {self.sent} {self.received} "
            f"{round(self.wait * 1000)} {self.limit} {_pack(self.data)}"
        )

    @classmethod
    def decode(cls, line: str) -> Request:
        """The inverse of :meth:`encode`.

        :raises BadExchange: if ``line`` is nothing that it makes.
        """
        fields = line.split(" ")
        if len(fields) != 8 or fields[0] != "x1":
            raise BadExchange("not a request of this version of pytest-forkd")
        _version, session, sent, received, wait, limit, crc, text = fields
        generation, _, nonce = session.partition("-")
        return cls(
            _number(generation),
            nonce,
            _number(sent),
            _number(received),
            _number(wait) / 1000,
            _number(limit),
            _unpack(crc, text),
        )


@dataclass(frozen=True)
class Answer:
    """What the guest says.

    :ivar taken: how many of the controller's bytes have arrived.
    :ivar start: the number of the first byte in ``data``.
    """

    taken: int
    start: int
    data: bytes = b""

    def encode(self) -> str:
        """The answer as a line of ASCII, without the line's end."""
        return f"ok {self.taken} {self.start} {_pack(self.data)}"

    @classmethod
    def decode(cls, line: str) -> Answer:
        """The inverse of :meth:`encode`.

        :raises BadExchange: if ``line`` is nothing that it makes.
        """
        fields = line.split(" ")
        if len(fields) != 5 or fields[0] != "ok":
            raise BadExchange(f"not an answer: {line[:100]!r}")
        _ok, taken, start, crc, text = fields
        return cls(_number(taken), _number(start), _unpack(crc, text))
