"""What is wrong with a worker, or with what it says."""

from __future__ import annotations

import pytest

__all__ = ["BadEvent", "describe", "show_internal_error"]


class BadEvent(Exception):
    """An event that no worker of ours would send."""


class WorkerInternalError(Exception):
    """Carries the traceback of an internal error in a worker, as text."""


def show_internal_error(config: pytest.Config, text: str) -> None:
    """Have plugins show the traceback of an internal error in another process."""
    try:
        raise WorkerInternalError(text)
    except WorkerInternalError:
        excinfo = pytest.ExceptionInfo.from_current()
        config.hook.pytest_internalerror(excrepr=text, excinfo=excinfo)


def describe(exc: Exception) -> str:
    """What is wrong with a message, given the exception that handling it has raised."""
    if isinstance(exc, (BadEvent, ValueError)):
        return str(exc)
    return f"{type(exc).__name__}: {exc}"
