"""Multiplexes several channels over the one byte stream between the controller and a machine.

A machine is a guest of the ``forkd`` or ``qemu`` backend. The stream consists of frames: one byte
for the channel, the payload's length (unsigned, 32 bits, big-endian), and the payload.

=============  ==========================================================================
``CONTROL``    a JSON object, see :mod:`pytest_forkd.guest`
``WORKER``     bytes of the worker's channel, which carries execnet's messages; an empty frame
               is the end of that direction
``STDERR``     guest to controller: what collector and worker write to standard error
``FILES``      bytes of files of the working tree; a ``CONTROL`` message says what they are
``OPEN``       controller to guest, empty: a new stream begins, since the guest has been cloned;
               only where the guest cannot notice that otherwise
=============  ==========================================================================
"""

from __future__ import annotations

import json
import struct
from typing import Any

from pytest_forkd.channel.bounds import check_json
from pytest_forkd.channel.frames import MAX_FRAME_BYTES, FrameError

__all__ = [
    "CONTROL",
    "FILES",
    "MAX_DATA_BYTES",
    "OPEN",
    "STDERR",
    "WORKER",
    "Demultiplexer",
    "control_frame",
    "data_frames",
    "parse_control",
]

CONTROL, WORKER, STDERR, FILES, OPEN = range(5)
#: Payload of a frame that is not ``CONTROL``; longer data is split into several frames.
MAX_DATA_BYTES = 256 * 1024
_HEADER = struct.Struct("!BI")


def control_frame(message: dict[str, Any]) -> bytes:
    """A ``CONTROL`` frame.

    :param message: a JSON-serializable object.
    """
    payload = json.dumps(message, separators=(",", ":")).encode("ascii")
    return _HEADER.pack(CONTROL, len(payload)) + payload


def data_frames(channel: int, data: bytes) -> bytes:
    """Frames that carry ``data`` on another channel; one empty frame if ``data`` is empty."""
    if len(data) <= MAX_DATA_BYTES:
        return _HEADER.pack(channel, len(data)) + data
    parts = []
    for start in range(0, len(data), MAX_DATA_BYTES):
        part = data[start : start + MAX_DATA_BYTES]
        parts += [_HEADER.pack(channel, len(part)), part]
    return b"".join(parts)


def parse_control(payload: bytes) -> dict[str, Any]:
    """The object in a ``CONTROL`` frame.

    :raises FrameError: if there is none.
    """
    try:
        check_json(payload)
        message = json.loads(payload)
    except (ValueError, RecursionError) as exc:
        raise FrameError(f"a control message cannot be decoded: {exc}") from exc
    if not isinstance(message, dict):
        raise FrameError("a control message is not a JSON object")
    return message


class Demultiplexer:
    """Cuts a byte stream into frames.

    :param channels: the channels that the other side may send on.
    """

    def __init__(self, *channels: int) -> None:
        self._channels = frozenset(channels)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take the next bytes of the stream.

        :returns: the frames that are complete now: channel and payload.
        :raises FrameError: on a channel that is not allowed, or a frame that is too long.
        """
        buffer = self._buffer
        buffer += data
        frames = []
        position = 0
        while len(buffer) - position >= _HEADER.size:
            channel, length = _HEADER.unpack_from(buffer, position)
            if channel not in self._channels:
                raise FrameError(f"nothing may be sent on channel {channel}")
            limit = MAX_FRAME_BYTES if channel == CONTROL else MAX_DATA_BYTES
            if length > limit:
                raise FrameError(f"a frame of {length} bytes, of which {limit} are allowed")
            end = position + _HEADER.size + length
            if len(buffer) < end:
                break
            frames.append((channel, bytes(buffer[position + _HEADER.size : end])))
            position = end
        del buffer[:position]
        return frames

    def reset(self) -> None:
        """Drop an incomplete frame: a new stream begins."""
        self._buffer.clear()
