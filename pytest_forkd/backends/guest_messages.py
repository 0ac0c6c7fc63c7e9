"""What a guest may say, checked: a guest is not trusted, whatever it was when it was made.

Each check takes the value that came with a message's key and returns it, as far as it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pytest_forkd.channel.frames import FrameError

__all__ = ["check"]

#: Characters of a text that is shown, and of any other.
_MAX_SHOWN = 20_000
_MAX_TEXT = 4 * 1024 * 1024
_MAX_ITEMS = 2_000_000
_MAX_FINDINGS = 1000


def check(message: dict[str, Any]) -> tuple[str, Any]:
    """The name and the value of a control message.

    :raises FrameError: if no guest of ours would send it.
    """
    if len(message) != 1:
        raise FrameError("a control message has not one key")
    ((name, value),) = message.items()
    checker = _CHECKS.get(name)
    if checker is None:
        raise FrameError(f"a guest does not say {name[:40]!r}")
    return name, checker(value)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FrameError(f"{type(value).__name__} instead of an object")
    return value


def _list(value: Any, limit: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > limit:
        raise FrameError(f"{type(value).__name__} instead of a list, or one that is too long")
    return value


def _text(value: Any, limit: int = _MAX_TEXT) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise FrameError(f"{type(value).__name__} instead of text, or one that is too long")
    return value


def _shown(value: Any) -> str:
    """A text that the user gets to see; it changes nothing but the line it stands in."""
    text = _text(value)[:_MAX_SHOWN]
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def _integer(value: Any) -> int:
    if type(value) is not int or not -(2**31) <= value < 2**31:
        raise FrameError(f"{type(value).__name__} instead of a number, or one that is too large")
    return value


def _hello(value: Any) -> dict[str, Any]:
    hello = _object(value)
    checked: dict[str, Any] = {"state": _text(hello.get("state"), 20)}
    if checked["state"] == "rest":
        for name in ("version", "python", "executable", "platform"):
            checked[name] = _shown(hello.get(name))
        checked["version_info"] = tuple(_list(hello.get("version_info"), 5))
        checked["pid"] = _integer(hello.get("pid"))
        failures = _object(hello.get("preload_failures"))
        checked["preload_failures"] = {_shown(k): _shown(v) for k, v in failures.items()}
    return checked


def _restored(value: Any) -> list[str]:
    return [_text(each, 20) for each in _list(_object(value).get("failed"), 10)]


def _finding(value: Any) -> dict[str, Any]:
    finding = _object(value)
    path = finding.get("path")
    return {
        "what": _shown(finding.get("what")),
        "path": None if path is None else _shown(path),
        "lineno": _integer(finding.get("lineno")),
    }


def _findings(value: Any) -> list[dict[str, Any]]:
    return [_finding(each) for each in _list(value, _MAX_FINDINGS)]


def _events(value: Any) -> list[list[Any]]:
    events = _list(value, _MAX_ITEMS)
    for event in events:
        if not isinstance(event, list) or not event or not isinstance(event[0], str):
            raise FrameError("an event is no list that begins with a name")
    return events


def _warm(value: Any) -> dict[str, Any]:
    warm = _object(value)
    if warm.get("level") == "imports":
        return {"level": "imports"}
    if warm.get("level") != "collection":
        raise FrameError("no warm level")
    return {
        "level": "collection",
        "ids": [_text(each) for each in _list(warm.get("ids"), _MAX_ITEMS)],
        "fixtures": warm.get("fixtures"),  # checked where it is used
        "events": _events(warm.get("events")),
        "findings": _findings(warm.get("findings")),
        "seconds": _seconds(warm.get("seconds")),
        "modules": [],  # names of modules to import are not taken from a guest
    }


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise FrameError("no number of seconds")
    return float(value)


def _unsuitable(value: Any) -> dict[str, Any]:
    unsuitable = _object(value)
    findings = _findings(unsuitable.get("findings"))
    if not findings:
        raise FrameError("a collection is unsuitable for no reason")
    return {
        "findings": findings,
        "modules": [],
        "complete": False,
        "files": [_text(each, 4096) for each in _list(unsuitable.get("files"), 100_000)],
    }


def _ended(value: Any) -> dict[str, Any]:
    ended = _object(value)
    return {"status": _integer(ended.get("status")), "events": _events(ended.get("events"))}


def _usage_error(value: Any) -> list[str]:
    return [_shown(each) for each in _list(value, 20)]


def _forked(value: Any) -> dict[str, Any]:
    return {"worker": _text(_object(value).get("worker"), 200)}


def _fork_failed(value: Any) -> dict[str, Any]:
    return {**_forked(value), "error": _shown(value.get("error"))}


def _exit(value: Any) -> dict[str, Any]:
    status = _integer(_object(value).get("status"))
    if not 0 <= status < 1 << 16:
        raise FrameError("no wait status")
    texts = {name: _text(value.get(name)) for name in ("dump", "out", "err")}
    reason = value.get("reason")
    return {
        **_forked(value),
        "status": status,
        "reason": None if reason is None else _shown(reason),
        **texts,
    }


def _over(value: Any) -> int:
    return _integer(_object(value).get("status"))


def _manifest(value: Any) -> dict[str, Any]:
    texts = _object(_object(value).get("texts"))
    return {
        "entries": value.get("entries"),  # checked by pytest_forkd.sync
        "texts": {_text(path, 4096): _text(text) for path, text in texts.items()},
    }


def _synced(value: Any) -> dict[str, Any]:
    error = _object(value).get("error")
    return {"error": None if error is None else _shown(error)}


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "hello": _hello,
    "restored": _restored,
    "warm": _warm,
    "unsuitable": _unsuitable,
    "ended": _ended,
    "usage_error": _usage_error,
    "forked": _forked,
    "fork_failed": _fork_failed,
    "exit": _exit,
    "over": _over,
    "pong": _integer,
    "manifest": _manifest,
    "synced": _synced,
}
