"""What a worker tells the controller, as JSON.

A message is a JSON list of events, each a list that starts with the event's name:

=================  =====================================================================
``start``          ``[index, location]``: the item is about to run
``logstart``       ``[nodeid, location]``, if they differ from those of ``start``
``logfinish``      ``[nodeid, location]``, or nothing if both are those of ``start``
``passed``         ``[when, duration, start, stop, keywords]``: a report of the running item, see
                   :mod:`pytest_forkd.channel.short_reports`; no keywords if they are as before
``report``         ``[data]``: a test report, see :mod:`pytest_forkd.channel.packing`
``complete``       ``[index, seconds, phases]``: the item's run-test protocol has ended. Waiting
                   and shared fixtures are not counted; ``phases`` are the seconds of set-up,
                   call and teardown, ``None`` if the test was skipped
``want``           ``[index]``: the worker waits to be told the item after this one, which it may
                   not have begun; ``None`` before its first item
``fixture``        ``[key, seconds]``: the set-up of a fixture of a scope above function
``deselected``     ``[items]`` that will not run, see :mod:`pytest_forkd.channel.deselected`
``collectreport``  ``[data]``: a collection report that did not pass
``warning``        ``[data, when, nodeid, location]``
``ready``          ``[workerinfo]``
``ids``            ``[ids]``: the first part of a collection that is too long for one message
``collection``     ``[ids, fixtures]``, only from a worker that collected for itself;
                   ``fixtures`` as ``parent.fixtures.fixture_table`` makes it
``unscheduled``    ``[indices]``: given back after a ``steal``
``exhausted``      ``[text]``: what its machine has run out of; it ends after the running item
``interrupted``    ``[kind, message, returncode]``: ``exit`` or ``keyboard``
``internal_error`` ``[text]``
``unconfigured``   ``[usage, text]``: whether it is a usage error that its session never began,
                   and the reason
``finished``       ``[workeroutput]``, packed by :func:`pack_object`
=================  =====================================================================

A worker is not trusted: its messages are decoded to builtins only, as described in
:mod:`pytest_forkd.channel.messages`. JSON is fast, but has neither tuples nor bytes; fields that
pytest documents as tuples are made tuples again on arrival, and values that JSON cannot keep travel
as execnet's own serialization of builtins.

A test may leave modules patched. So whatever a worker needs here is looked up when this module is
imported, which is before the first test.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from execnet import DumpError

from pytest_forkd.channel.bounds import MAX_DEPTH, MAX_VALUES
from pytest_forkd.compat.execnet import (
    COMPLEX_FORMAT,
    FLOAT_FORMAT,
    Serializer,
    Unserializer,
    opcode,
    read_byte_string,
)

__all__ = [
    "PLAIN_FIELDS",
    "encode_batch",
    "pack_object",
    "unpack_object",
    "unpack_report",
]

_TEXT = (str,)
_SECONDS = (float, int)
_ENTRIES = (list, tuple)
#: The fields that pytest's own reports have (pytest 8 and 9: ``TestReport``, ``CollectReport``),
#: and the types that they have there and JSON can keep.
PLAIN_FIELDS: dict[str, tuple[type, ...]] = {
    "$report_type": _TEXT,
    "duration": _SECONDS,
    "item_index": (int,),
    "keywords": (dict,),
    "location": (*_ENTRIES, type(None)),
    "longrepr": (str, dict, *_ENTRIES, type(None)),
    "nodeid": _TEXT,
    "outcome": _TEXT,
    "result": (list, type(None)),
    "sections": _ENTRIES,
    "start": _SECONDS,
    "stop": _SECONDS,
    "testrun_uid": _TEXT,
    "user_properties": _ENTRIES,
    "when": (str, type(None)),
    "worker_id": _TEXT,
}
#: Those of them that may hold any builtins.
_MAY_BE_PACKED = frozenset({"keywords", "longrepr", "result", "user_properties"})


class _Packer(Serializer):
    """execnet's serializer, extended to lone surrogates and integers below -2**31."""

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
    except (ValueError, RecursionError) as exc:  # an integer too long, or nesting too deep
        raise DumpError(str(exc)) from exc


def unpack_object(text: str) -> Any:
    """The inverse of :func:`pack_object`; builds builtins only, whatever ``text`` holds.

    :raises ValueError: if :func:`pack_object` cannot have made ``text``.
    """
    try:
        return _Loader(base64.b64decode(text, validate=True)).load(versioned=True)
    except ValueError:
        raise
    except Exception as exc:
        raise ValueError(f"not a packed object: {type(exc).__name__}: {exc}") from exc


class _Loader(Unserializer):
    """execnet's unserializer with limits: it would make a list of any length that the data demands.

    Each instruction makes one value, so the number of instructions is limited. So is the depth:
    comparing, hashing or printing deeply nested values could exhaust the stack.

    :param data: what ``execnet.dumps`` made.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._size = len(data)
        self._values = 0
        #: By ``id`` of a container: how many levels of containers there are, itself included.
        self._depths: dict[int, int] = {}

    @property
    def num2func(self) -> Any:  # type: ignore[override]
        """The dispatch table. Counts values, since execnet looks it up once per instruction."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise ValueError(f"a packed object has more than {MAX_VALUES} values")
        return _LOADERS

    def new_list(self) -> None:
        """Refuse a list that is longer than the remaining data could fill."""
        length = int.from_bytes(self.stream.read(4), "big")
        if length > self._size:
            raise ValueError(f"a list of {length} items is longer than the message")
        self.stack.append([None] * length)
        self._size -= length

    def set_item(self) -> None:
        """Set an item as execnet does, and check the depth."""
        value = self.stack[-1]
        self.load_setitem()
        self._nest(self.stack[-1], value)

    def collect(self, load: Callable[[Unserializer], None]) -> None:
        """Make a tuple or a set with ``load``."""
        length = int.from_bytes(self.stream.read(4), "big")
        if length > len(self.stack):
            raise ValueError(f"{length} items of which there are fewer")
        assert isinstance(self.stream, io.BytesIO)
        self.stream.seek(-4, io.SEEK_CUR)
        # Check the depth before a set hashes its items.
        items = self.stack[len(self.stack) - length :]
        depth = max((self._depths.get(id(value), 0) for value in items), default=0)
        self._check(depth + 1)
        load(self)
        self._depths[id(self.stack[-1])] = depth + 1

    def _nest(self, container: object, value: object) -> None:
        depth = max(self._depths.get(id(container), 1), 1 + self._depths.get(id(value), 0))
        self._check(depth)
        self._depths[id(container)] = depth

    @staticmethod
    def _check(depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError(f"a packed object is nested more than {MAX_DEPTH} levels deep")


def _load_text(loader: Unserializer) -> None:
    loader.stack.append(read_byte_string(loader).decode("utf-8", "surrogatepass"))


_COLLECTIONS = (opcode.BUILDTUPLE, opcode.SET, opcode.FROZENSET)


_LOADERS = {
    **Unserializer.num2func,
    opcode.NEWLIST: _Loader.new_list,
    opcode.SETITEM: _Loader.set_item,
    opcode.PY3STRING: _load_text,
    **{
        code: partial(lambda load, loader: loader.collect(load), Unserializer.num2func[code])
        for code in _COLLECTIONS
    },
}
_b64encode = base64.b64encode
_pack_float = struct.Struct(FLOAT_FORMAT).pack
_pack_complex = struct.Struct(COMPLEX_FORMAT).pack


def unpack_report(data: Any) -> dict[str, Any]:
    """The inverse of ``packing.pack_report``, with tuples where pytest's reports have tuples.

    :raises ValueError: if ``data`` is not a report.
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
        if foreign.keys() & PLAIN_FIELDS.keys() - _MAY_BE_PACKED:
            raise ValueError("a report with packed fields that need not be")
        data.update(foreign)
    return data


# ``json.dumps`` with separators would make a new encoder for each message.
_encode = json.JSONEncoder(separators=(",", ":")).encode


def encode_batch(events: list[list[Any]]) -> bytes:
    """A message of several events.

    :raises execnet.DumpError: if an event holds something that JSON cannot represent, see
        :func:`pytest_forkd.channel.packing.sendable_event`; it names the events.
    """
    try:
        return _encode(events).encode("ascii")
    except (TypeError, ValueError, RecursionError) as exc:
        names = ", ".join(sorted({str(event[0]) for event in events}))
        raise DumpError(f"cannot send to the controller ({names}): {exc}") from exc
