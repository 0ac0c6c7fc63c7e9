"""Serializes a worker's warnings, and makes warnings about values that cannot be sent.

:mod:`pytest_forkd.controller.received_warnings` rebuilds them in the controller.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest

from pytest_forkd import PytestForkdWarning
from pytest_forkd.channel.packing import Replaced
from pytest_forkd.channel.sendable import as_builtins
from pytest_forkd.compat.cpython import WARNING_DETAILS
from pytest_forkd.compat.pytest import apply_warning_filters

__all__ = ["replaced_warnings", "take_apart"]


def take_apart(message: warnings.WarningMessage) -> dict[str, Any]:
    """The same as ``xdist.remote.serialize_warning_message``, with builtins only.

    xdist's function fails on lone surrogates and on integers below -2**31, or changes them.
    """
    warning, category = message.message, message.category
    data: dict[str, Any] = dict.fromkeys(
        (
            "message_str",
            "message_module",
            "message_class_name",
            "message_args",
            "category_module",
            "category_class_name",
        )
    )
    if isinstance(warning, Warning):
        data["message_module"] = type(warning).__module__
        data["message_class_name"] = type(warning).__name__
        data["message_str"] = str(warning)
        data["message_args"] = _or_else(warning.args, None)
    else:
        data["message_str"] = str(warning)
    if category:
        data["category_module"] = category.__module__
        data["category_class_name"] = category.__name__
    for name in WARNING_DETAILS:
        if name not in ("message", "category"):
            value = getattr(message, name)
            data[name] = _or_else(value, None if value is None else repr(value))
    return data


def _or_else(value: Any, instead: Any) -> Any:
    """The value if it consists of builtins, else ``instead``."""
    replaced: list[str] = []
    found = as_builtins(value, replaced)
    return instead if replaced else found


def replaced_warnings(
    config: pytest.Config, replaced: Replaced, nodeid: str, location: Any
) -> list[warnings.WarningMessage]:
    """Warnings about fields that were sent as text, unless the suite's filters ignore them.

    :param replaced: the fields, and the types that their values had.
    :param nodeid: the node id of the report; may be empty.
    :param location: the location of the test, if there is one.
    """
    if config.pluginmanager.is_blocked("warnings"):
        return []
    path, line, _name = location or (nodeid.partition("::")[0], None, "")
    filename = os.path.join(config.rootpath, path) if path else str(config.rootpath)
    lineno = 0 if line is None else line + 1
    shown = []
    for field, kind in dict.fromkeys(replaced):
        warning = PytestForkdWarning(
            f"only builtins can be sent to the controller, and {field} holds {kind}: "
            "its str() was sent instead"
        )
        with warnings.catch_warnings(record=True) as recorded:
            warnings.simplefilter("always", PytestForkdWarning)
            filters = getattr(config.known_args_namespace, "pythonwarnings", None) or []
            apply_warning_filters(config.getini("filterwarnings"), filters)
            try:
                warnings.warn_explicit(warning, PytestForkdWarning, filename, lineno)
            except PytestForkdWarning:
                # The filters turn warnings into errors. Record this one all the same: raising it
                # would end the worker.
                recorded.append(
                    warnings.WarningMessage(warning, PytestForkdWarning, filename, lineno)
                )
        shown += recorded
    return shown
