"""What went wrong with a session beside its tests, in words that pytest would use, too."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_forkd.compat.pytest import ConftestImportFailure
from pytest_forkd.compat.tracebacks import stack

__all__ = ["reason"]


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
        cause: Any = getattr(exc, "cause", None)
        if cause is None:
            cause = exc.excinfo[1]  # type: ignore[attr-defined]  # pytest 8.0
        shown = stack(cause)
        return {
            "usage": True,
            "text": f"ImportError while loading conftest '{exc.path}'.\n{shown}",
        }
    return {"usage": False, "text": stack(exc)}
