"""Warnings that workers recorded, made again in the controller without trusting the worker.

xdist imports the module and calls the class that the message names. Here only classes that the
controller has loaded already are used, and only if making one runs no Python code of theirs.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

__all__ = ["rebuild_warning"]


def rebuild_warning(data: dict[str, Any]) -> warnings.WarningMessage:
    """The warning message that ``xdist.remote.serialize_warning_message`` took apart.

    :raises KeyError: if a field is missing.
    :raises TypeError: if a field is of a wrong type.
    """
    category = _warning_class(data["category_module"], data["category_class_name"])
    message_class = _warning_class(data["message_module"], data["message_class_name"])
    text = str(data["message_str"])
    message: Warning | str = text
    if message_class is not None:
        arguments = data["message_args"]
        plain = (
            message_class.__init__ is Warning.__init__
            and message_class.__new__ is Warning.__new__
            and message_class.__str__ is Warning.__str__
        )
        if plain and isinstance(arguments, (tuple, list)):
            message = message_class(*arguments)
        elif plain:
            message = message_class(text)
        else:
            message = Warning(text)
    details = {
        name: data[name]
        for name in warnings.WarningMessage._WARNING_DETAILS  # type: ignore[attr-defined]
        if name not in ("message", "category")
    }
    return warnings.WarningMessage(message=message, category=category, **details)  # type: ignore[arg-type]


def _warning_class(module: object, name: object) -> type[Warning] | None:
    """A warning class by its name; one of the same name where the controller does not have it."""
    if not module:
        return None
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a warning's class is named by text")
    found = getattr(sys.modules.get(module), name, None)
    if isinstance(found, type) and issubclass(found, Warning):
        return found
    # The summary shows a category's name, and nothing else of it.
    return type(name, (Warning,), {"__module__": module})
