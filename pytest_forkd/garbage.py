"""How often the controller looks for garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["fewer_full_collections"]

_RARER = 10


@contextlib.contextmanager
def fewer_full_collections() -> Iterator[None]:
    """Look through long-lived objects less often, while reports are coming in.

    The terminal reporter keeps every report, so the session's objects only grow in number, and
    Python's collector takes each growth by a quarter for a reason to look through all of them.
    Young objects are looked through as often as ever.
    """
    before = gc.get_threshold()
    gc.set_threshold(before[0], before[1], before[2] * _RARER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
