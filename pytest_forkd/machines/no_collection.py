"""The answer that a run gets if no machine could collect."""

from __future__ import annotations

from typing import Any

from pytest_forkd.backends.base import RunRequest

__all__ = ["no_collection"]


def no_collection(
    request: RunRequest, level: str, reason: str, *, collecting: bool
) -> dict[str, Any]:
    """The message to the session, in place of a collector's answer.

    A guest ends with the process that collects in it, so nothing in it can report which file was
    being imported. For workers that is known: that process is their parent, and reports their end.

    :param request: what was to be collected.
    :param level: the warm level that was tried.
    :param reason: why there is no collection, in words.
    :param collecting: whether a guest was lost while it collected.
    """
    if not collecting or level != "collection":
        return {"usage_error": [f"pytest-forkd: {reason}"]}
    if request.warm != "auto":
        hint = "If a test file ends whoever imports it, --forkd-warm=imports names it."
        return {"usage_error": [f"pytest-forkd: {reason}\n{hint}"]}
    finding = {"what": f"the machine that was to collect is lost ({reason})", "path": None}
    return {
        "unsuitable": {
            "findings": [finding],
            "modules": [],
            "complete": False,
            "files": [],
            "remember": False,
        }
    }
