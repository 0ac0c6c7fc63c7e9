"""Checks the messages of guests, which are not trusted: tests may have changed them.

The collector's messages are checked in :mod:`pytest_forkd.channel.collector_messages`. Each check
here takes the value of a message, and returns the part of it that is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_forkd.channel.bounds import shown
from pytest_forkd.channel.collector_messages import check_collected, only_entry
from pytest_forkd.channel.frames import FrameError

__all__ = ["ANSWERS", "NO_SESSION", "check"]

#: Answers of a guest whose session never began, and all possible answers to ``collect``.
NO_SESSION = ("usage_error", "unconfigured", "imported_early")
ANSWERS = ("warm", "unsuitable", "ended", *NO_SESSION)

#: Most characters of a text.
_MAX_TEXT = 4 * 1024 * 1024


def check(message: dict[str, Any]) -> tuple[str, Any]:
    """The name and the value of a control message.

    :raises FrameError: if no guest of ours would send it.
    """
    name, value = only_entry(message)
    checker = _CHECKS.get(name)
    if checker is not None:
        return name, checker(value)
    checked = check_collected(name, value)
    if isinstance(checked, dict) and "modules" in checked:
        checked["modules"] = []  # a guest must not decide what later runs import early
        if name == "unsuitable":
            checked["complete"] = False
    return name, checked


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
    """A text to be shown to the user, without characters that could change the terminal."""
    return shown(_text(value))


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
    "over": _over,
    "pong": _integer,
    "manifest": _manifest,
    "synced": _synced,
}
