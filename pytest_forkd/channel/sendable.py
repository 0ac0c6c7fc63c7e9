"""Makes builtins of whatever a suite reports, so that it can be sent to the controller.

Only builtins travel (see :mod:`pytest_forkd.channel.events`). A suite may put anything into its
reports, and that must not end its run: an instance of a builtin's subclass is sent as the builtin
that it is, and what is none as its ``str()``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["MAX_DEPTH", "as_builtins", "as_json", "type_name"]

#: Containers in containers; what is deeper is sent as text.
MAX_DEPTH = 64

#: Each builtin that holds no others, and what makes it of an instance of a subclass, whatever
#: methods that has.
_ATOMS: dict[type, Callable[[Any], object]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    int: int.__int__,
    float: float.__float__,
    complex: complex.__pos__,
    str: str.__str__,
    bytes: lambda value: bytes(memoryview(value)),
}
#: Python makes no text of a longer integer (sys.set_int_max_str_digits), and so no JSON.
_MAX_BITS = 14_000
#: What gives a type's name, whatever its metaclass makes of that.
_qualname = vars(type)["__qualname__"].__get__
_module = vars(type)["__module__"].__get__


def type_name(kind: type) -> str:
    """A type's name as one would write it, with its module unless that is ``builtins``."""
    module = _module(kind)
    name = str.__str__(_qualname(kind))
    return name if module == "builtins" or not isinstance(module, str) else f"{module}.{name}"


def as_builtins(value: Any, replaced: list[str], depth: int = 0) -> Any:
    """A copy of a value that execnet can serialize, made of builtins of exactly these types.

    :param replaced: gets for each part that is sent as text what it was, which names its type.
    :param depth: how many containers it is in.
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
    """The same for JSON, which has fewer values: lists for tuples, text for other keys and NaN."""
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
    if kind is float and value - value != 0:  # infinite, or no number
        return _as_text(value, replaced)
    return value


def _hashable(value: Any, replaced: list[str], depth: int) -> Any:
    """The same for what is in a set, or a key: a subclass of ``list`` may have a hash."""
    found = as_builtins(value, replaced, depth)
    try:
        hash(found)
    except TypeError:
        return _as_text(value, replaced)
    return found


def _as_text(value: Any, replaced: list[str], what: str | None = None) -> str:
    """A value's ``str()``; its type's name if that raises, whatever it raises."""
    name = type_name(type(value))
    replaced.append(what or f"a value of type {name}")
    try:
        return str.__str__(str(value))
    except KeyboardInterrupt:
        raise
    except BaseException:  # pytest's outcomes, such as that of pytest.fail(), are no Exception
        return name
