"""What the user has asked for: an option, or the ini value of the same name; and its checks."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["option_or_ini", "whole_number"]


def option_or_ini(config: pytest.Config, namespace: Any, name: str) -> tuple[Any, str]:
    """What the user asked for.

    :param namespace: the options as parsed so far.
    :param name: the name of the option's attribute and of the ini value.
    :returns: the option's value, else the ini value (``None`` if empty); and the name of its
        source, for messages.
    """
    value = getattr(namespace, name, None)
    if value is not None:
        return value, "--" + name.replace("_", "-")
    return config.getini(name) or None, f"ini value {name}"


def whole_number(value: object, least: int, most: int, complaint: str) -> int:
    """A value that has to be a whole number.

    :param value: as it was given.
    :param complaint: what is wrong with any other value, and what to do.
    :raises pytest.UsageError: if it is none, or one below ``least`` or above ``most``.
    """
    try:
        number = int(str(value))
    except ValueError:
        raise pytest.UsageError(complaint) from None
    if not least <= number <= most:
        raise pytest.UsageError(complaint)
    return number
