"""Whether a run can rely on what is private to pytest, xdist and execnet; remembered."""

from __future__ import annotations

import contextlib
import json

import pytest

from pytest_forkd.compat.pytest import cache_directory
from pytest_forkd.compat.selftest import missing, versions
from pytest_forkd.config.cache import QuietCache

__all__ = ["missing_internals", "remember_internals"]

_KEY = "forkd/internals"


def missing_internals(config: pytest.Config) -> str | None:
    """What the installed libraries lack of what a run uses, in words.

    :param config: as early as ``pytest_load_initial_conftests``: there is no ``config.cache`` yet.
    :returns: ``None`` if they have all of it, or had it in an earlier run with the same versions.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        text = (cache_directory(config) / "v" / _KEY).read_text("utf-8")
        if json.loads(text) == versions():
            return None
    return missing()


def remember_internals(config: pytest.Config) -> None:
    """Note that they had all of it; nothing is written if that is known."""
    cache, now = QuietCache(config), versions()
    if cache.get(_KEY) != now:
        cache.set(_KEY, now)
