"""What is kept in pytest's cache between runs: read and written if that is possible, or not at all.

A root directory may only be read. pytest warns of that for its own part; it is no news from us, and
must not end a run where warnings are errors.
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
    """pytest's cache, without a word where it cannot be used.

    :param config: whose cache it is; with ``-p no:cacheprovider`` there is none.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._cache: Any = getattr(config, "cache", None)

    def get(self, key: str) -> Any:
        """What was kept; ``None`` if nothing was, or it makes no sense."""
        value = self._cache.get(key, None) if self._cache is not None else None
        if not isinstance(value, str):
            return value
        with contextlib.suppress(ValueError):
            return json.loads(value)
        return None

    def set(self, key: str, value: object) -> None:
        """Keep what JSON can keep."""
        if self._cache is None:
            return
        with warnings.catch_warnings(), contextlib.suppress(OSError):
            warnings.simplefilter("ignore")
            try:
                self._cache.set(key, value)
            except UnicodeEncodeError:  # pytest's cache keeps no file names that are not UTF-8
                self._cache.set(key, json.dumps(value))

    def make_directory(self, name: str) -> Path | None:
        """A directory for files of ours; ``None`` if there can be none.

        :raises OSError: if it cannot be made.
        """
        return None if self._cache is None else Path(self._cache.mkdir(name))
