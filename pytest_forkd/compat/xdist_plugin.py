"""What is private to xdist's plugin module, which is loaded as early as a run can be.

Read in, and checked with, pytest-xdist 3.6, 3.7 and 3.8.
"""

from __future__ import annotations

from typing import Any

from xdist.plugin import _sys_path, pytest_xdist_auto_num_workers

__all__ = ["import_path", "number_of_workers"]


def import_path() -> list[str]:
    """``sys.path`` as it was when xdist's plugin was loaded: before any conftest."""
    return _sys_path


def number_of_workers(config: Any) -> int:
    """What xdist's own implementation of its hook makes of ``auto`` and ``logical``."""
    return int(pytest_xdist_auto_num_workers(config))
