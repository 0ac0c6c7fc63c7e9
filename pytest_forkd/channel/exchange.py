"""The text of an exchange: what each end of an exec stream sends the other.

An exchange is a request and an answer. Each is a line of ASCII, so that it survives a guest agent
that decodes output as UTF-8 and a daemon that wraps it in JSON. The request, its fields separated
by spaces::

    x1 SESSION SENT RECEIVED WAIT LIMIT CRC DATA

``SESSION`` is a number, larger than that of any earlier stream to the guest, a hyphen and random
digits. ``DATA`` (base64) are the bytes of the stream to the guest, from byte number ``SENT`` on.
``RECEIVED`` is how many bytes of the stream from the guest have arrived. The guest answers at once
if it has more of them, or if the request has data; otherwise after at most ``WAIT`` milliseconds::

    ok TAKEN START CRC DATA

``TAKEN`` bytes have arrived at the guest, in all. ``DATA``, at most ``LIMIT`` bytes, is the stream
from the guest, from byte number ``START`` on. Since bytes are numbered, an exchange may be lost,
repeated, delayed or overtaken by another one: bytes that were seen before are ignored.

Other answers: ``superseded`` (a newer stream has been opened), ``bad TEXT`` (not a request); and,
from the relay in the guest: ``busy`` (the guest's parent is not listening just now) and ``gone
TEXT`` (the guest's parent has ended).
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass

__all__ = ["Answer", "BadExchange", "Request"]


class BadExchange(ValueError):
    """The text is not a valid request or answer."""


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
    """What the controller sends.

    :ivar generation: the number of the stream.
    :ivar nonce: random, to tell apart two streams with the same number.
    :ivar sent: the number of the first byte in ``data``.
    :ivar received: how many of the guest's bytes have arrived.
    :ivar wait: seconds that the guest may wait for data to answer with.
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
    """What the guest sends.

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
