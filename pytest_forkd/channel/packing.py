"""Makes a worker's reports ready to be sent, whatever a suite has put into them.

pytest's own fields are sent as JSON. Values that plugins have added are sent packed, and values
that are not builtins as their ``str()``. Nothing here fails because of what a suite reports. The
caller gets a list of what was replaced, to warn the user.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from execnet import DumpError

from pytest_forkd.channel.events import PLAIN_FIELDS, pack_object
from pytest_forkd.channel.sendable import as_builtins, as_json

__all__ = ["Replaced", "pack_report", "pack_somehow", "sendable_event", "sendable_location"]

#: Names of fields of which a part was sent as text, and the type of that part.
Replaced = list[tuple[str, str]]

_SCALARS = (str, int, float, bool, type(None))
_ENTRIES = (list, tuple)
_LINES = (int, type(None))


def pack_somehow(obj: object, replaced: list[str]) -> str:
    """Like :func:`~pytest_forkd.channel.events.pack_object`, but accepts any object.

    Parts that are not builtins are packed as their ``str()``.

    :param replaced: the types of such parts are added to it.
    """
    try:
        return pack_object(obj)
    except DumpError:
        return pack_object(as_builtins(obj, replaced))


def pack_report(data: dict[str, Any], replaced: Replaced) -> dict[str, Any]:
    """Make a report that pytest serialized ready for JSON.

    :param data: what ``pytest_report_to_serializable`` returned.
    :param replaced: everything that is not a builtin, and so is sent as its ``str()``, is added.
    :returns: the same fields; those that plugins added and JSON cannot represent are moved, packed,
        to ``"$packed"``.
    """
    foreign = {}
    odd = []
    for key, value in data.items():
        types = PLAIN_FIELDS.get(key)
        if types is None:
            if type(value) not in _SCALARS:
                foreign[key] = value
        elif type(value) not in types:
            odd.append(key)
    for key in ("sections", "keywords", "location"):
        value = data.get(key)
        if value is not None and key not in odd and not _IS_ORDINARY[key](value):
            odd.append(key)
    if odd:
        data = {**data, **{key: _plain(key, data[key], replaced) for key in odd}}
    properties: list[Any] | None = data.get("user_properties")
    if properties and not all(
        type(part) in _SCALARS for pair in properties for part in _parts(pair)
    ):
        foreign["user_properties"] = list(properties)
    if not foreign:
        return data
    plain = {key: value for key, value in data.items() if key not in foreign}
    try:
        plain["$packed"] = pack_object(foreign)
    except DumpError:
        plain["$packed"] = pack_object(_as_builtins_by_field(foreign, replaced))
    return plain


def _parts(pair: object) -> tuple[object, ...]:
    return tuple(pair) if isinstance(pair, (tuple, list)) else (pair,)


def _as_builtins_by_field(fields: dict[str, Any], replaced: Replaced) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in fields.items():
        if key != "user_properties":
            found[key] = _note(key, replaced, as_builtins, value)
            continue
        found[key] = []
        for pair in value:
            name = pair[0] if isinstance(pair, (tuple, list)) and pair else None
            field = f"{key}[{name!r}]" if type(name) is str else key
            found[key].append(_note(field, replaced, as_builtins, pair))
    return found


# The rest is for pytest's own fields whose values somebody has replaced by another type: they are
# converted back to the type that they have in pytest's reports.

_IS_ORDINARY: dict[str, Callable[[Any], bool]] = {
    "sections": lambda sections: all(
        type(section) in _ENTRIES and [type(text) for text in section] == [str, str]
        for section in sections
    ),
    "keywords": lambda keywords: all(
        type(name) is str and type(value) in _SCALARS for name, value in keywords.items()
    ),
    "location": lambda location: (
        len(location) == 3
        and type(location[0]) is type(location[2]) is str
        and type(location[1]) in _LINES
    ),
}


def _plain(key: str, value: Any, replaced: Replaced) -> Any:
    found = _note(key, replaced, as_json, value)
    types = PLAIN_FIELDS[key]
    if key == "sections":
        pairs = found if isinstance(found, list) else [found]
        return [
            [str(text) for text in pair]
            if isinstance(pair, list) and len(pair) == 2
            else ["Section", str(pair)]
            for pair in pairs
        ]
    if key == "location" and isinstance(found, list):
        return sendable_location(found)
    if isinstance(found, types):
        return found
    if key == "user_properties":
        return [[key, found]]
    if float in types:
        try:  # it may be a Decimal, for example
            seconds = float(found)
        except (TypeError, ValueError):
            return 0.0
        return seconds if math.isfinite(seconds) else 0.0
    return {} if key == "keywords" else str(found)


def sendable_location(location: Any) -> tuple[str, int | None, str]:
    """A test's location (file, line, name), whatever a suite's custom items have made of it."""
    if _IS_ORDINARY["location"](location):
        return location  # type: ignore[no-any-return]
    path, line, domain = [*as_json(list(location), []), "", None, ""][:3]
    return str(path), line if type(line) is int else None, str(domain)


def sendable_event(event: list[Any], replaced: Replaced) -> list[Any]:
    """An event that JSON can represent: other values are replaced by text.

    :param replaced: each such value is added to it.
    """
    name, *arguments = event
    if name in ("report", "collectreport"):
        data = {key: _note(key, replaced, as_json, value) for key, value in arguments[0].items()}
        return [name, data]
    return [name, *(_note(name, replaced, as_json, argument) for argument in arguments)]


def _note(
    field: str,
    replaced: Replaced,
    convert: Callable[[Any, list[str]], Any],
    value: object,
) -> Any:
    parts: list[str] = []
    found = convert(value, parts)
    replaced += [(field, part) for part in parts]
    return found
