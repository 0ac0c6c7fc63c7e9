"""Keeps frames of this package out of the tracebacks that users see."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

import pytest_forkd

__all__ = ["left_out", "stack"]

_OWN_FILES = os.path.join(os.path.dirname(os.path.abspath(pytest_forkd.__file__)), "")
#: pytest leaves out frames whose file name has both brackets, since it takes them for generated.
_GENERATED = "<pytest-forkd>"

_Function = TypeVar("_Function", bound=Callable[..., Any])


def left_out(function: _Function) -> _Function:
    """Make pytest leave a function's frames out of tracebacks, as it does with its own.

    ``__tracebackhide__`` alone is not enough. For an error in one of pytest's own fixtures all
    frames are pytest's, and it then shows them all, but not if one of ours is among them.
    """
    assert isinstance(function, FunctionType)
    function.__code__ = function.__code__.replace(co_filename=_GENERATED)
    return function


def stack(exc: BaseException) -> str:
    """An exception's traceback as text, from the first frame on that is not ours."""
    tb = exc.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith((_OWN_FILES, _GENERATED)):
        tb = tb.tb_next
    return "".join(traceback.format_exception(type(exc), exc, tb, chain=False)).rstrip()
