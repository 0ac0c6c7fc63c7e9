"""Why pytest could not be configured, in the words that pytest would use."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_forkd.compat.pytest import ConftestImportFailure
from pytest_forkd.compat.tracebacks import stack

__all__ = ["reason"]


def reason(exc: BaseException) -> dict[str, Any]:
    """Why a configuration could not be made.

    :param exc: what pytest raised.
    :returns: ``usage``, whether pytest treats it as a usage error rather than an internal one, and
        ``text``, which may have several lines.
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
