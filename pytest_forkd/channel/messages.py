"""What workers and collectors may say: a schema of each message, for the controller.

A message is decoded, or converted, by :mod:`msgspec` into what is described here, or not at all:
nothing of it is used before all of it has been checked. Whether it is true, such as that a worker
was given the test that it speaks of, is for its receiver to see.

Only the controller imports this module. The other side needs nothing but JSON; what it sends is
described in :mod:`pytest_forkd.channel.events`.
"""

# No postponed annotations: each would be compiled when the controller starts.

import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pytest
from msgspec import Meta

from pytest_forkd.channel.bounds import MAX_COLLECTED_BYTES, MAX_VALUES, check_json, line, shown
from pytest_forkd.channel.events import unpack_object, unpack_report
from pytest_forkd.channel.frames import FrameError

__all__ = [
    "Collected",
    "CollectorEvent",
    "WorkerEvent",
    "check_collected",
    "check_report",
    "check_warning",
    "decode_events",
    "names_of_events",
    "only_entry",
    "unpack_output",
]

_INT4 = 2**31

Int = Annotated[int, Meta(ge=-_INT4, lt=_INT4)]
Index = Annotated[int, Meta(ge=0, lt=_INT4)]
#: No infinity; JSON has no other number that is none.
Time = Annotated[float, Meta(ge=-1e15, le=1e15)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Name = Annotated[str, Meta(max_length=10_000)]
Word = Annotated[str, Meta(pattern=r"\A[\w .?-]{1,100}\Z")]
Location = tuple[str, Int | None, str]
Phases = tuple[Seconds, Seconds, Seconds]

# -- what a worker says ------------------------------------------------------------------------


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
    fixtures: Any = None  # by SharedFixtures.from_json, which knows how many items there are


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
    """The classes of what a worker may say, and the names that those have in messages."""
    return {cls: str(cls.__struct_config__.tag) for cls in WorkerEvent.__args__}


def decode_events(payload: bytes) -> list[Any]:
    """The events of a worker's message.

    :returns: instances of the classes in :data:`WorkerEvent`.
    :raises ValueError: if any of it is not as described here; says which event it is.
    """
    check_json(payload)
    try:
        if b"\\u" not in payload:
            return _decode(payload)
        # Text may hold what UTF-8 cannot, such as a part of a file's name; msgspec refuses it.
        events: list[Any] = convert(_loads(payload), list[WorkerEvent])
        return events
    except (msgspec.ValidationError, UnicodeEncodeError) as exc:
        raise ValueError(_describe(payload, exc)) from None
    except RecursionError:
        raise ValueError("a message is nested too deeply") from None


def convert(data: Any, type_: Any) -> Any:
    """Builtins as what is described by ``type_``.

    :raises ValueError: if they are anything else.
    """
    return msgspec.convert(data, type_)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _loads(payload: bytes) -> Any:
    return json.loads(payload, parse_constant=_no_number)


def _describe(payload: bytes, exc: Exception) -> str:
    """What is wrong with a message, with the name of the event that is."""
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

# -- reports -----------------------------------------------------------------------------------

_Pairs = list[tuple[Any, Any]]


class _FileLocation(TypedDict):
    path: str
    lineno: Int
    message: str


class _FuncArgs(TypedDict):
    args: _Pairs


class _Locals(TypedDict):
    lines: list[str]


class _EntryData(TypedDict, total=False):
    lines: list[str]
    reprfuncargs: _FuncArgs | None
    reprlocals: _Locals | None
    reprfileloc: _FileLocation | None
    style: str


class _Entry(TypedDict):
    type: Literal["ReprEntry", "ReprEntryNative"]
    data: _EntryData


class _Traceback(TypedDict):
    reprentries: list[_Entry]
    extraline: str | None
    style: str


class _Exception(TypedDict):
    """What pytest makes of an exception's representation."""

    reprcrash: _FileLocation | None
    reprtraceback: _Traceback
    sections: list[tuple[str, str, str]]
    chain: list[tuple[_Traceback, _FileLocation | None, str | None]] | None


class _AnyReport(TypedDict):
    nodeid: str
    outcome: Word
    longrepr: Any


class _TestReport(_AnyReport):
    location: Location
    keywords: dict[str, Any]
    when: Word


class _Optional(TypedDict, total=False):
    """What a report need not have; pytest's have some of it."""

    sections: list[tuple[str, str]]
    wasxfail: str
    duration: Time
    start: Time | None
    stop: Time | None
    user_properties: _Pairs | None


#: The fields that pytest's reports have, some of which are properties.
_FIELDS = frozenset(
    {*_TestReport.__annotations__, *_AnyReport.__annotations__, *_Optional.__annotations__}
)


def check_report(data: dict[str, Any], *, of_test: bool) -> dict[str, Any]:
    """A report's fields, ready for ``pytest_report_from_serializable``.

    Fields that plugins have added may hold any builtins.

    :param data: as ``channel.events.pack_report`` made it; taken apart.
    :param of_test: a test's and not a collector's.
    :raises ValueError: if pytest, or a plugin that reads what pytest documents, could not do with
        it.
    """
    data = unpack_report(data)
    report_class: type = pytest.TestReport if of_test else pytest.CollectReport
    for name in data.keys() - _FIELDS:
        # An attribute that hides a method, or that there is code behind, is nobody's to set.
        if type(name) is not str or name.startswith("__") or hasattr(report_class, name):
            raise ValueError(f"a report with the field {name!r:.100}")
    convert(data, _TestReport if of_test else _AnyReport)
    convert(data, _Optional)
    longrepr = data.get("longrepr")
    if isinstance(longrepr, dict) and "reprcrash" in longrepr and "reprtraceback" in longrepr:
        convert(longrepr, _Exception)
    elif isinstance(longrepr, str) and "reprcrash" in longrepr and "reprtraceback" in longrepr:
        raise ValueError("pytest cannot read such a longrepr")
    if data.get("outcome") == "skipped" and isinstance(longrepr, tuple):
        convert(longrepr, tuple[str, Int | None, str])
    return data


class _Warning(TypedDict):
    message_str: str
    message_module: Name | None
    message_class_name: Name | None
    message_args: Any
    category_module: Name | None
    category_class_name: Name | None
    filename: str
    lineno: Int
    line: str | None
    file: Any
    source: Any


def check_warning(packed: str) -> dict[str, Any]:
    """What ``xdist.remote.serialize_warning_message`` made of a warning.

    :raises ValueError: if it is anything else.
    """
    data = unpack_object(packed)
    convert(data, _Warning)
    if not isinstance(data["message_args"], (tuple, list, type(None))):
        raise ValueError("arguments of a warning that are no list")
    checked: dict[str, Any] = data
    return checked


class _Output(TypedDict):
    exitstatus: Int
    shouldfail: bool | str
    shouldstop: bool | str


def unpack_output(packed: str) -> dict[str, Any]:
    """A ``workeroutput``; beside what xdist reads, plugins may have put any builtins there.

    :raises ValueError: if it is none.
    """
    output = unpack_object(packed)
    convert(output, _Output)
    checked: dict[str, Any] = output
    for name in ("shouldfail", "shouldstop"):
        if isinstance(checked[name], str):
            checked[name] = shown(checked[name])
    return checked


# -- what a collector says ---------------------------------------------------------------------


class _Finding(TypedDict):
    what: str
    path: str | None
    lineno: Int


class _Warm(TypedDict):
    level: Literal["collection"]
    ids: list[str]
    fixtures: Any  # as in Collection
    events: list[CollectorEvent]
    findings: Annotated[list[_Finding], Meta(max_length=1000)]
    modules: list[Name]
    seconds: Seconds


class _WarmImports(TypedDict):
    level: Literal["imports"]


class _Part(TypedDict):
    ids: list[str]
    events: list[CollectorEvent]


class _Unsuitable(TypedDict):
    findings: Annotated[list[_Finding], Meta(min_length=1, max_length=1000)]
    modules: list[Name]
    complete: bool
    files: Annotated[list[Name], Meta(max_length=100_000)]


class _Unconfigured(TypedDict):
    usage: bool
    text: str


class _Ended(TypedDict):
    status: Int
    events: list[CollectorEvent]


class _Worker(TypedDict):
    worker: Annotated[str, Meta(max_length=200)]


class _ForkFailed(_Worker):
    error: str


class _Exit(_Worker):
    status: Annotated[int, Meta(ge=0, lt=1 << 16)]
    dump: str
    out: str
    err: str


class _ExitMore(TypedDict, total=False):
    reason: str | None
    importing: Name


_Texts = Annotated[list[str], Meta(max_length=20)]


def _warm(value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and value.get("level") == "imports":
        checked: dict[str, Any] = convert(value, _WarmImports)
    else:
        checked = _show_findings(convert(value, _Warm))
    return checked


def _show_findings(value: dict[str, Any]) -> dict[str, Any]:
    for finding in value["findings"]:
        finding["what"] = shown(finding["what"])
        finding["path"] = None if finding["path"] is None else shown(finding["path"])
    return value


def _exit(value: Any) -> dict[str, Any]:
    end: dict[str, Any] = convert(value, _Exit)
    more = convert(value, _ExitMore)
    reason = more.get("reason")
    return {
        **end,
        "reason": None if reason is None else shown(reason),
        "importing": more.get("importing", ""),  # a path, not to be changed
    }


def _unconfigured(value: Any) -> dict[str, Any]:
    failed: dict[str, Any] = convert(value, _Unconfigured)
    return {**failed, "text": shown(failed["text"])}


def _fork_failed(value: Any) -> dict[str, Any]:
    failed: dict[str, Any] = convert(value, _ForkFailed)
    return {**failed, "error": shown(failed["error"])}


_COLLECTOR: dict[str, Callable[[Any], Any]] = {
    "part": lambda value: convert(value, _Part),
    "warm": _warm,
    "unsuitable": lambda value: _show_findings(convert(value, _Unsuitable)),
    "ended": lambda value: convert(value, _Ended),
    "usage_error": lambda value: [shown(text) for text in convert(value, _Texts)],
    "unconfigured": _unconfigured,
    "imported_early": lambda value: convert(value, Annotated[list[Name], Meta(max_length=10_000)]),
    "forked": lambda value: convert(value, _Worker),
    "fork_failed": _fork_failed,
    "exit": _exit,
}


def only_entry(message: dict[str, Any]) -> tuple[str, Any]:
    """The name and the value of a control message.

    :raises FrameError: if it has not one key.
    """
    if len(message) != 1:
        raise FrameError("a control message has not one key")
    return next(iter(message.items()))


def check_collected(name: str, value: Any) -> Any:
    """The value of a collector's message, checked.

    :param name: the message's key.
    :raises FrameError: if no collector of ours would send it.
    """
    checker = _COLLECTOR.get(name)
    if checker is None:
        raise FrameError(f"a collector does not say {line(name)!r}")
    try:
        return checker(value)
    except (ValueError, RecursionError) as exc:
        raise FrameError(f"{name}: {line(str(exc))}") from None


class Collected:
    """Puts together what a collector tells in parts."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._events: list[Any] = []
        self._size = 0

    def take(self, name: str, value: Any) -> bool:
        """Take a message that has been checked.

        Into ``warm`` and ``ended`` goes what came in parts before.

        :returns: whether it was a part, with which there is nothing to do yet.
        :raises FrameError: if the parts are more than is allowed.
        """
        if name == "part":
            self._ids += value["ids"]
            self._events += value["events"]
            self._size += sum(map(len, value["ids"])) + 1
            if self._size > MAX_COLLECTED_BYTES or len(self._ids) > MAX_VALUES:
                raise FrameError(
                    f"a collection of more than {MAX_COLLECTED_BYTES >> 30} GiB or {MAX_VALUES} "
                    "tests; collect less at a time"
                )
            return True
        if self._ids and name == "warm" and "ids" in value:
            value["ids"] = self._ids + value["ids"]
        if self._events and "events" in value:
            value["events"] = self._events + value["events"]
        if name in ("warm", "ended"):
            self._ids, self._events, self._size = [], [], 0
        return False
