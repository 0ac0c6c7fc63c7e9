"""What went wrong with a session beside its tests, in words that pytest would use, too."""

from __future__ import annotations

import os
import traceback
from typing import Any

import pytest
from _pytest.config import ConftestImportFailure

import pytest_forkd

__all__ = ["reason", "stack"]

_OWN_FILES = os.path.join(os.path.dirname(os.path.abspath(pytest_forkd.__file__)), "")


def reason(exc: BaseException) -> dict[str, Any]:
    """Why a configuration could not be made.

    :param exc: what pytest raised.
    :returns: ``usage``: whether pytest takes it for an error of the user's, not for one of its own;
        and ``text``, several lines maybe.
    """
    if isinstance(exc, pytest.UsageError):
        return {"usage": True, "text": "\n".join(str(arg) for arg in exc.args)}
    if isinstance(exc, ConftestImportFailure):
        # As pytest's own main() shows it.
        shown = stack(exc.cause)
        return {
            "usage": True,
            "text": f"ImportError while loading conftest '{exc.path}'.\n{shown}",
        }
    return {"usage": False, "text": stack(exc)}


def stack(exc: BaseException) -> str:
    """An exception with its stack, from the first frame on that is not ours."""
    tb = exc.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(_OWN_FILES):
        tb = tb.tb_next
    return "".join(traceback.format_exception(type(exc), exc, tb, chain=False)).rstrip()
