"""Data kept in pytest's cache between runs; errors in reading and writing it are ignored.

The root directory may be read-only. pytest itself warns about that, so we need not, and must not:
if warnings are errors, that would end the run.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

__all__ = ["QuietCache"]


class QuietCache:
    """pytest's cache, without warnings if it cannot be used.

    :param config: the configuration; with ``-p no:cacheprovider`` it has no cache.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._cache: Any = getattr(config, "cache", None)

    def get(self, key: str) -> Any:
        """The stored value; ``None`` if there is none, or it cannot be read."""
        value = self._cache.get(key, None) if self._cache is not None else None
        if not isinstance(value, str):
            return value
        with contextlib.suppress(ValueError):
            return json.loads(value)
        return None

    def set(self, key: str, value: object) -> None:
        """Store a value that JSON can represent; errors are ignored."""
        if self._cache is None:
            return
        with warnings.catch_warnings(), contextlib.suppress(OSError):
            warnings.simplefilter("ignore")
            try:
                self._cache.set(key, value)
            except UnicodeEncodeError:  # pytest's cache cannot store file names that are not UTF-8
                self._cache.set(key, json.dumps(value))

    def make_directory(self, name: str) -> Path | None:
        """Make a directory for our files; ``None`` if there is no cache.

        :raises OSError: if it cannot be made.
        """
        return None if self._cache is None else Path(self._cache.mkdir(name))
