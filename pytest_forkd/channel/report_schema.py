"""Schemas of what is packed in workers' messages: reports, warnings and ``workeroutput``."""

# Without "from __future__ import annotations": compiling text annotations slows the start down.

from typing import Any, Literal, TypedDict

import pytest

from pytest_forkd.channel.events import unpack_object, unpack_report
from pytest_forkd.channel.schema import (
    Int,
    Location,
    Name,
    Time,
    Word,
    convert,
)

__all__ = ["check_report", "check_warning"]

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
    """A serialized exception of pytest's."""

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
    """Fields that a report need not have; pytest's reports have some of them."""

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

    :param data: as ``channel.events.unpack_report`` returned it; it is changed.
    :param of_test: true for a test's report, false for a collector's.
    :raises ValueError: if pytest, or a plugin that reads the documented fields, could not use it.
    """
    data = unpack_report(data)
    report_class: type = pytest.TestReport if of_test else pytest.CollectReport
    for name in data.keys() - _FIELDS:
        # Must not hide a method or set a property.
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
    """Unpack and check what ``xdist.remote.serialize_warning_message`` made of a warning.

    :raises ValueError: if it is anything else.
    """
    data = unpack_object(packed)
    convert(data, _Warning)
    if not isinstance(data["message_args"], (tuple, list, type(None))):
        raise ValueError("arguments of a warning that are no list")
    checked: dict[str, Any] = data
    return checked
