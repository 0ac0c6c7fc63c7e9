"""Where files of this user are kept, by the XDG Base Directory Specification, 0.8.

``platformdirs`` knows that, too, but it registers a pytest plugin of its own, which every run would
have to load.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["user_cache", "user_state"]

_NAME = "pytest-forkd"


def user_cache() -> Path:
    """The directory for what can be made again: below ``XDG_CACHE_HOME``, else ``~/.cache``."""
    return _below("XDG_CACHE_HOME", ".cache")


def user_state() -> Path:
    """The directory for records: below ``XDG_STATE_HOME``, else ``~/.local/state``."""
    return _below("XDG_STATE_HOME", ".local/state")


def _below(variable: str, default: str) -> Path:
    """A directory of ours; the specification has relative paths ignored."""
    base = os.environ.get(variable, "")
    return (Path(base) if os.path.isabs(base) else Path.home() / default) / _NAME
