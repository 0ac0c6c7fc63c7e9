"""What a worker tells the controller, as JSON.

A message is a JSON list of events, each a list that starts with the event's name:

=================  =====================================================================
``start``          ``[index, location]``: the item is about to run
``logstart``       ``[nodeid, location]``, where it is not the one that ``start`` told of
``logfinish``      ``[nodeid, location]``, or nothing where both are those of ``start``
``passed``         ``[when, duration, start, stop, keywords]``: a report of the running item, see
                   :mod:`pytest_forkd.channel.passed`; no keywords where they are as before
``report``         ``[data]``: a test report, see :mod:`pytest_forkd.channel.packing`
``complete``       ``[index, seconds, phases]``: the item's run-test protocol has ended. Neither
                   time counts waiting and shared fixtures; ``phases`` are those of set-up, call
                   and teardown, ``None`` if the test was skipped
``want``           ``[]``: the worker cannot go on without knowing its next item
``fixture``        ``[key, seconds]``: the set-up of a fixture of a scope above function
``deselected``     ``[count]``: of items that will not run
``collectreport``  ``[data]``: a collection report that did not pass
``warning``        ``[data, when, nodeid, location]``
``ready``          ``[workerinfo]``
``collection``     ``[ids, fixtures]``, only from a worker that collected for itself;
                   ``fixtures`` as ``parent.fixtures.fixture_table`` makes it
``unscheduled``    ``[indices]``: given back after a ``steal``
``exhausted``      ``[text]``: what its machine has no more of; it ends after the running item
``interrupted``    ``[kind, message, returncode]``: ``exit`` or ``keyboard``
``internal_error`` ``[text]``
``finished``       ``[workeroutput]``, packed by :func:`pack_object`
=================  =====================================================================

A worker is not trusted: what it sends is decoded to builtins only. JSON is fast, but has neither
tuples nor bytes; fields that pytest documents as tuples are made tuples again on arrival, and
values that JSON cannot keep travel as execnet's own serialization of builtins.

A test may leave the modules that it has patched in any state. What a worker needs here is therefore
held from when this module was imported, which is before the first test.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from typing import Any

from execnet import DumpError
from execnet.gateway_base import (
    COMPLEX_FORMAT,
    FLOAT_FORMAT,
    Unserializer,
    _Serializer,
    opcode,
)

__all__ = [
    "decode_batch",
    "encode_batch",
    "pack_object",
    "unpack_object",
    "unpack_report",
]


class _Packer(_Serializer):
    """execnet's, and what that cannot take: lone surrogates, and integers below -2**31."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        super().__init__(self._parts.append)

    def pack(self, obj: object) -> bytes:
        self.save(obj, versioned=True)
        return b"".join(self._parts)

    def _write_unicode_string(self, s: str) -> None:
        self._write_byte_sequence(s.encode("utf-8", "surrogatepass"))

    def _save_integral(self, i: int, short_op: bytes, long_op: bytes) -> None:
        if -(2**31) <= i < 2**31:
            self._write(short_op + i.to_bytes(4, "big", signed=True))
        else:
            self._write(long_op)
            self._write_byte_sequence(str(i).encode("ascii"))

    def _write_int4(self, i: int, error: str = "too large") -> None:
        if i >= 2**31:
            raise DumpError(error)
        self._write(i.to_bytes(4, "big", signed=True))

    def save_float(self, flt: float) -> None:
        self._write(opcode.FLOAT + _pack_float(flt))

    def save_complex(self, cpx: complex) -> None:
        self._write(opcode.COMPLEX + _pack_complex(cpx.real, cpx.imag))


def pack_object(obj: object) -> str:
    """Builtins of any nesting (tuples, sets and bytes included) as a JSON string.

    :raises execnet.DumpError: for anything that is not a builtin.
    """
    try:
        return _b64encode(_Packer().pack(obj)).decode("ascii")
    except (ValueError, RecursionError) as exc:  # an integer, or a nesting, that is too long
        raise DumpError(str(exc)) from exc


def unpack_object(text: str) -> Any:
    """The inverse of :func:`pack_object`; builds builtins only, whatever ``text`` holds.

    :raises ValueError: if ``text`` is nothing that :func:`pack_object` makes.
    """
    try:
        stream = io.BytesIO(base64.b64decode(text, validate=True))
        loader = Unserializer(stream)
        loader.num2func = _LOADERS
        return loader.load(versioned=True)
    except ValueError:
        raise
    except Exception as exc:
        raise ValueError(f"not a packed object: {type(exc).__name__}: {exc}") from exc


def _load_newlist(loader: Unserializer) -> None:
    """execnet's makes a list of any length that it is told, before its items come."""
    length = int.from_bytes(loader.stream.read(4), "big")
    assert isinstance(loader.stream, io.BytesIO)
    if length > len(loader.stream.getbuffer()) - loader.stream.tell():
        raise ValueError(f"a list of {length} items is longer than the message")
    loader.stack.append([None] * length)


def _load_text(loader: Unserializer) -> None:
    loader.stack.append(loader._read_byte_string().decode("utf-8", "surrogatepass"))


_LOADERS = {
    **Unserializer.num2func,
    opcode.NEWLIST: _load_newlist,
    opcode.PY3STRING: _load_text,
}
_b64encode = base64.b64encode
_pack_float = struct.Struct(FLOAT_FORMAT).pack
_pack_complex = struct.Struct(COMPLEX_FORMAT).pack


def unpack_report(data: Any) -> dict[str, Any]:
    """The inverse of ``packing.pack_report``, with tuples where pytest's reports have tuples.

    :raises ValueError: if ``data`` is no report.
    """
    if not isinstance(data, dict) or not isinstance(data.get("nodeid"), str):
        raise ValueError("a report without a node id")
    for key in ("location", "longrepr"):
        if isinstance(data.get(key), list):
            data[key] = tuple(data[key])
    for key in ("sections", "user_properties"):
        pairs = data.get(key)
        if pairs:
            if not isinstance(pairs, list):
                raise ValueError(f"a report whose {key} are no list")
            data[key] = [tuple(pair) if isinstance(pair, list) else pair for pair in pairs]
    packed = data.pop("$packed", None)
    if packed is not None:
        foreign = unpack_object(packed)
        if not isinstance(foreign, dict):
            raise ValueError("a report with packed fields that are no mapping")
        data.update(foreign)
    return data


# ``json.dumps`` would make an encoder for each message, and ``json.loads`` guess the encoding and
# look for white space.
_encode = json.JSONEncoder(separators=(",", ":")).encode
_raw_decode = json.JSONDecoder().raw_decode


def encode_batch(events: list[list[Any]]) -> bytes:
    """A message of several events.

    :raises execnet.DumpError: if an event holds something that JSON cannot keep, see
        :func:`pytest_forkd.channel.packing.sendable_event`; it names the events.
    """
    try:
        return _encode(events).encode("ascii")
    except (TypeError, ValueError, RecursionError) as exc:
        names = ", ".join(sorted({str(event[0]) for event in events}))
        raise DumpError(f"cannot send to the controller ({names}): {exc}") from exc


def decode_batch(payload: bytes) -> list[list[Any]]:
    """The events of a message.

    :raises ValueError: if it is not a list of events.
    """
    try:
        text = payload.decode("ascii")
        events, end = _raw_decode(text)
    except RecursionError:
        raise ValueError("a message is nested too deeply") from None
    if end != len(text):
        raise ValueError("a message goes on after its end")
    if not isinstance(events, list):
        raise ValueError("a message is not a list of events")
    for event in events:
        if not (isinstance(event, list) and event and isinstance(event[0], str)):
            raise ValueError("an event has no name")
    return events
