"""What workers may say: a schema of each event, for the controller.

:mod:`msgspec` decodes a message into the classes below, or rejects it as a whole: no part of it is
used before all of it has been checked. Whether it is true is checked by its receiver, for example
that the worker was given the test that it reports. The reports in it are described in
:mod:`pytest_forkd.channel.report_schema`, what a collector says in
:mod:`pytest_forkd.channel.collector_messages`.

Only the controller imports these modules. The other side needs nothing but JSON; what it sends is
described in :mod:`pytest_forkd.channel.events`.
"""

# Without "from __future__ import annotations": compiling text annotations slows the start down.

import json
import re
from collections.abc import Callable
from typing import Any, Literal, TypedDict

import msgspec

from pytest_forkd.channel.bounds import check_json, line
from pytest_forkd.channel.schema import (
    Index,
    Int,
    Location,
    Name,
    Phases,
    Seconds,
    Time,
    convert,
)

__all__ = ["CollectorEvent", "WorkerEvent", "decode_events", "names_of_events"]


class Start(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="start"):
    index: Index
    location: Location


class Logstart(
    msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="logstart"
):
    nodeid: str
    location: Location


class Logfinish(
    msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="logfinish"
):
    nodeid: str | None = None
    location: Location | None = None


class Passed(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="passed"):
    when: Literal["setup", "call", "teardown"]
    duration: Time
    start: Time
    stop: Time
    keywords: list[str] | None = None


class Report(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="report"):
    data: dict[str, Any]


class Complete(
    msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="complete"
):
    index: Index
    seconds: Seconds
    phases: Phases | None = None


class Want(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="want"):
    index: Index | None = None


class Fixture(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="fixture"):
    key: Name
    seconds: Seconds


class Deselected(
    msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="deselected"
):
    items: list[tuple[str, list[str] | None]]


class CollectReport(
    msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="collectreport"
):
    data: dict[str, Any]


class Warned(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="warning"):
    data: str
    when: Literal["config", "collect", "runtest"]
    nodeid: str
    location: tuple[str, Int, str] | None


class WorkerInfo(TypedDict):
    version: str
    version_info: tuple[Int, Int, Int, Name, Int]
    sysplatform: str
    platform: str
    executable: str
    cwd: str


class Ready(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="ready"):
    info: WorkerInfo


class Ids(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="ids"):
    ids: list[str]


class Collection(
    msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="collection"
):
    ids: list[str]
    fixtures: Any = None  # checked by SharedFixtures.from_json, which needs the number of items


class Unscheduled(
    msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="unscheduled"
):
    indices: list[Index]


class Exhausted(
    msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="exhausted"
):
    text: str


class Interrupted(
    msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="interrupted"
):
    kind: Literal["exit", "keyboard"]
    message: str
    returncode: Int | None


class InternalError(
    msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="internal_error"
):
    text: str


class Finished(
    msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="finished"
):
    workeroutput: str


class Unconfigured(
    msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, tag="unconfigured"
):
    usage: bool
    text: str


CollectorEvent = (
    Deselected | CollectReport | Warned | Interrupted | InternalError | Unconfigured | Finished
)
WorkerEvent = (
    CollectorEvent
    | Start
    | Logstart
    | Logfinish
    | Passed
    | Report
    | Complete
    | Want
    | Fixture
    | Ready
    | Ids
    | Collection
    | Unscheduled
    | Exhausted
)
_decode: Callable[[bytes], list[Any]] = msgspec.json.Decoder(list[WorkerEvent]).decode


def names_of_events() -> dict[type, str]:
    """The event classes, with the name of each in messages."""
    return {cls: str(cls.__struct_config__.tag) for cls in WorkerEvent.__args__}


def decode_events(payload: bytes) -> list[Any]:
    """The events of a worker's message.

    :returns: instances of the classes in :data:`WorkerEvent`.
    :raises ValueError: if any event does not match its class; the text names the event.
    """
    check_json(payload)
    try:
        if b"\\u" not in payload:
            return _decode(payload)
        # Texts such as file names may hold lone surrogates, which msgspec's decoder refuses.
        events: list[Any] = convert(_loads(payload), list[WorkerEvent])
        return events
    except (msgspec.ValidationError, UnicodeEncodeError) as exc:
        raise ValueError(_describe(payload, exc)) from None
    except RecursionError:
        raise ValueError("a message is nested too deeply") from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _loads(payload: bytes) -> Any:
    return json.loads(payload, parse_constant=_no_number)


def _describe(payload: bytes, exc: Exception) -> str:
    """What is wrong with a message, and with which of its events."""
    why = line(str(exc))
    found = re.search(r"\$\[(\d+)\][^$]*\Z", str(exc))
    events = _loads(payload)
    if not isinstance(events, list) or (found is None and len(events) != 1):
        return why
    event = events[int(found[1]) if found else 0]
    if not isinstance(event, list) or not event or not isinstance(event[0], str):
        return f"an event has no name: {why}"
    name = line(event[0][:40])
    return f"{name}: {why}" if event[0] in _NAMES else f"{name}: unknown event"


_NAMES = frozenset(names_of_events().values())
