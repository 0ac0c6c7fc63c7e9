"""Rebuilds in the controller the warnings that workers recorded, without trusting the worker.

xdist imports the module and calls the class that the message names. Here only classes are used that
the controller has already loaded, and only if making an instance runs no Python code of theirs.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from pytest_forkd.compat.cpython import WARNING_DETAILS

__all__ = ["rebuild_warning"]


def rebuild_warning(data: dict[str, Any]) -> warnings.WarningMessage:
    """The inverse of ``xdist.remote.serialize_warning_message``.

    :raises KeyError: if a field is missing.
    :raises TypeError: if a field is of a wrong type.
    """
    category = _warning_class(data["category_module"], data["category_class_name"])
    message_class = _warning_class(data["message_module"], data["message_class_name"])
    text = str(data["message_str"])
    message: Warning | str = text
    if message_class is not None:
        arguments = data["message_args"]
        if not _runs_code(message_class):
            given = arguments if isinstance(arguments, (tuple, list)) else (text,)
            message = message_class(*given)
        else:
            message = Warning(text)
    details = {name: data[name] for name in WARNING_DETAILS if name not in ("message", "category")}
    return warnings.WarningMessage(message=message, category=category, **details)  # type: ignore[arg-type]


def _runs_code(message_class: type[Warning]) -> bool:
    """Whether making or showing an instance runs Python code of the class."""
    methods = {
        "__new__",
        "__init__",
        "__str__",
        "__repr__",
        "__init_subclass__",
        "__getattribute__",
    }
    return (
        any(
            methods & vars(base).keys()
            for base in message_class.__mro__
            if base.__module__ != "builtins"
        )
        or type(message_class) is not type
    )


def _warning_class(module: object, name: object) -> type[Warning] | None:
    """A warning class by its name; a new class of that name if the controller has not loaded it."""
    if not module:
        return None
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a warning's class is named by text")
    # getattr() could run a module's __getattr__ (PEP 562).
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    if isinstance(found, type) and issubclass(found, Warning):
        return found
    # The summary shows only the category's name, so a stand-in will do.
    return type(name, (Warning,), {"__module__": module})
