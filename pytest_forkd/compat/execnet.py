"""What is private to execnet. Read in, and checked with, execnet 2.1.

Its wire format: a message is a code, a channel's id, the length of the data, and the data, which is
serialized as opcodes. A worker imports this module.
"""

from __future__ import annotations

from typing import Any

from execnet.gateway_base import (
    COMPLEX_FORMAT,
    FLOAT_FORMAT,
    Message,
    Unserializer,
    _Serializer,
    opcode,
)

__all__ = [
    "COMPLEX_FORMAT",
    "FLOAT_FORMAT",
    "Message",
    "Serializer",
    "Unserializer",
    "enter_group",
    "forget_joins",
    "is_message_code",
    "leave_group",
    "opcode",
    "read_byte_string",
]

Serializer = _Serializer


def read_byte_string(loader: Unserializer) -> bytes:
    """The byte string that comes next, with its length before it."""
    return loader._read_byte_string()


def is_message_code(code: int) -> bool:
    """Whether execnet knows a message's code."""
    return code in Message._types


def enter_group(group: Any, gateway: Any) -> None:
    """Add a gateway to a group that has not made it."""
    group._register(gateway)


def leave_group(group: Any, gateway: Any) -> None:
    """Remove a gateway from a group, without starting a thread that waits for its process."""
    if gateway in group:
        group._unregister(gateway)


def forget_joins(group: Any) -> None:
    """Stop a group from waiting for gateways that have left it."""
    group._gateways_to_join.clear()
