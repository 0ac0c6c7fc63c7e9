"""What collectors may say: a schema of each message, for the controller."""

# Without "from __future__ import annotations": compiling text annotations slows the start down.

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta

from pytest_forkd.channel.bounds import MAX_COLLECTED_BYTES, MAX_VALUES, line, shown
from pytest_forkd.channel.frames import FrameError
from pytest_forkd.channel.messages import CollectorEvent
from pytest_forkd.channel.schema import (
    Int,
    Name,
    Seconds,
    convert,
)

__all__ = ["Collected", "check_collected", "only_entry"]


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
        "importing": more.get("importing", ""),  # a path, so it must not be escaped
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

    :raises FrameError: if it does not have exactly one key.
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
    """Puts messages together that a collector sent in parts."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._events: list[Any] = []
        self._size = 0

    def take(self, name: str, value: Any) -> bool:
        """Take a message that has been checked.

        The contents of earlier parts are added to a ``warm`` or ``ended`` message, in place.

        :returns: whether it was only a part, so that there is nothing to do yet.
        :raises FrameError: if there are more parts than allowed.
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
