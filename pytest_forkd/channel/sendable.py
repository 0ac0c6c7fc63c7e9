"""Converts whatever a suite reports to builtins, so that it can be sent to the controller.

Only builtins can be sent (see :mod:`pytest_forkd.channel.events`). A suite may put anything into
its reports, and that must not end its run: an instance of a builtin's subclass is sent as that
builtin, and any other object as its ``str()``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["MAX_DEPTH", "as_builtins", "as_json", "type_name"]

#: Levels of nested containers; deeper ones are sent as text.
MAX_DEPTH = 64

#: Builtins that are not containers. The functions make such a builtin from an instance of a
#: subclass, without calling methods that the subclass overrides.
_ATOMS: dict[type, Callable[[Any], object]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    int: int.__int__,
    float: float.__float__,
    complex: complex.__pos__,
    str: str.__str__,
    bytes: lambda value: bytes(memoryview(value)),
}
#: Python refuses to convert longer integers to text (sys.set_int_max_str_digits), and so to JSON.
_MAX_BITS = 14_000
#: These get a type's name even if its metaclass overrides the attribute.
_qualname = vars(type)["__qualname__"].__get__
_module = vars(type)["__module__"].__get__


def type_name(kind: type) -> str:
    """A type's qualified name, with its module unless that is ``builtins``."""
    module = _module(kind)
    name = str.__str__(_qualname(kind))
    return name if module == "builtins" or not isinstance(module, str) else f"{module}.{name}"


def as_builtins(value: Any, replaced: list[str], depth: int = 0) -> Any:
    """A copy of a value that execnet can serialize: builtins only, no subclasses.

    :param replaced: for each part that is replaced by text, its type is added to it.
    :param depth: how many containers the value is in.
    """
    kind = type(value)
    if kind in _ATOMS:
        if kind is int and value.bit_length() > _MAX_BITS:
            return _as_text(value, replaced, "an int of too many digits")
        return value
    if depth < MAX_DEPTH:
        if issubclass(kind, (list, tuple)):
            base = list if issubclass(kind, list) else tuple
            parts = list(base.__iter__(value))
            return base(as_builtins(part, replaced, depth + 1) for part in parts)
        if issubclass(kind, (set, frozenset)):
            base_set: Any = set if issubclass(kind, set) else frozenset
            parts = list(base_set.__iter__(value))
            return base_set(_hashable(part, replaced, depth + 1) for part in parts)
        if issubclass(kind, dict):
            items = list(dict.items(value))
            return {
                _hashable(key, replaced, depth + 1): as_builtins(part, replaced, depth + 1)
                for key, part in items
            }
    for base_atom, convert in _ATOMS.items():
        if issubclass(kind, base_atom):
            return as_builtins(convert(value), replaced, depth)
    too_deep = f"a {type_name(kind)} inside {MAX_DEPTH} others" if depth == MAX_DEPTH else None
    return _as_text(value, replaced, too_deep)


def as_json(value: Any, replaced: list[str]) -> Any:
    """The same for JSON, which has fewer types: tuples become lists, other keys and NaN text."""
    return _for_json(as_builtins(value, replaced), replaced)


def _for_json(value: Any, replaced: list[str]) -> Any:
    kind = type(value)
    if kind in (list, tuple):
        return [_for_json(part, replaced) for part in value]
    if kind is dict:
        return {
            key if type(key) is str else _as_text(key, replaced): _for_json(part, replaced)
            for key, part in value.items()
        }
    if kind in (complex, bytes, set, frozenset):
        return _as_text(value, replaced)
    if kind is float and value - value != 0:  # infinite or NaN
        return _as_text(value, replaced)
    return value


def _hashable(value: Any, replaced: list[str], depth: int) -> Any:
    """The same for set items and keys: a hashable subclass of ``list`` would become unhashable."""
    found = as_builtins(value, replaced, depth)
    try:
        hash(found)
    except TypeError:
        return _as_text(value, replaced)
    return found


def _as_text(value: Any, replaced: list[str], what: str | None = None) -> str:
    """A value's ``str()``, or its type's name if that raises anything."""
    name = type_name(type(value))
    replaced.append(what or f"a value of type {name}")
    try:
        return str.__str__(str(value))
    except KeyboardInterrupt:
        raise
    except BaseException:  # pytest's outcomes, as raised by pytest.fail(), are not Exceptions
        return name
