"""Checks once per set of versions that the private names of pytest, xdist and execnet exist."""

from __future__ import annotations

import contextlib
import json

import pytest

from pytest_forkd.compat.pytest import cache_directory
from pytest_forkd.compat.versions import versions
from pytest_forkd.config.cache import QuietCache

__all__ = ["missing_internals", "remember_internals"]

_KEY = "forkd/internals"


def missing_internals(config: pytest.Config) -> str | None:
    """Which private name that a run uses the installed libraries lack, in words.

    :param config: as early as ``pytest_load_initial_conftests``: there is no ``config.cache`` yet.
    :returns: ``None`` if they have all of it, or had it in an earlier run with the same versions.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        text = (cache_directory(config) / "v" / _KEY).read_text("utf-8")
        if json.loads(text) == versions():
            return None
    from pytest_forkd.compat.selftest import missing  # most runs know the result

    return missing()


def remember_internals(config: pytest.Config) -> None:
    """Remember that nothing is missing; writes nothing if that is known already."""
    cache, now = QuietCache(config), versions()
    if cache.get(_KEY) != now:
        cache.set(_KEY, now)
