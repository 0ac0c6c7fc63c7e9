"""An option, or the ini value of the same name."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["option_or_ini"]


def option_or_ini(config: pytest.Config, namespace: Any, name: str) -> tuple[Any, str]:
    """What the user asked for.

    :param namespace: the options as parsed so far.
    :param name: of the option's attribute, and of the ini value.
    :returns: what the option says, else the ini value (``None`` if empty); and which of them it is,
        for messages.
    """
    value = getattr(namespace, name, None)
    if value is not None:
        return value, "--" + name.replace("_", "-")
    return config.getini(name) or None, f"ini value {name}"
