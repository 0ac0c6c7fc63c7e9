"""What is private to pluggy. Read in, and checked with, pluggy 1.5 and 1.6."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pytest_forkd.compat.tracebacks import left_out

__all__ = ["change_arguments", "distribution_directory"]


def distribution_directory(distribution: Any) -> str | None:
    """The ``.dist-info`` directory of an item of ``list_plugin_distinfo()``, if there is one.

    Its name contains the version, and is quicker to get than the metadata.
    """
    folder = getattr(distribution._dist, "_path", None)
    return None if folder is None else str(folder)


def change_arguments(caller: Any, change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> bool:
    """Change the arguments that a hook's implementations get.

    pluggy has no API for that, so this replaces the function with which the hook caller executes
    the implementations.

    :param caller: the hook caller, such as ``config.hook.pytest_runtest_teardown``.
    :param change: takes the arguments of a call, and returns those for the implementations.
    :returns: whether that is possible with this version of pluggy.
    """
    execute = getattr(caller, "_hookexec", None)
    if not callable(execute):
        return False

    @left_out
    def execute_changed(name: str, methods: Any, kwargs: Any, firstresult: bool) -> object:
        __tracebackhide__ = True
        return execute(name, methods, change(kwargs), firstresult)

    try:
        caller._hookexec = execute_changed
    except AttributeError:
        return False
    return True
