"""How often the controller looks for garbage, and at how much."""

from __future__ import annotations

import atexit
import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import Any

__all__ = ["fewer_full_collections", "last_collection", "thaw", "without_reports_at_exit"]

_RARER = 10
#: What the interpreter itself has frozen (some hundred objects, in Python 3.12).
_ALWAYS_FROZEN = gc.get_freeze_count()
_frozen = False


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


def last_collection() -> None:
    """Look for garbage among what is young, and until :func:`thaw` only among what is new.

    pytest looks through everything five times in a row when it unconfigures, to find what raises
    in its finalizer (``_pytest.unraisableexception``). In the controller no test leaves garbage
    behind, but the reports of all tests would be looked through each time.
    """
    global _frozen
    if gc.get_freeze_count() <= _ALWAYS_FROZEN:  # else somebody has a use of its own for it
        gc.collect(1)
        gc.freeze()
        _frozen = True


def thaw() -> None:
    """Undo what :func:`last_collection` did to the process; it may run another session."""
    global _frozen
    if _frozen:
        gc.unfreeze()
        _frozen = False


def without_reports_at_exit(reporter: Any) -> None:
    """Let the interpreter end without the reports that a terminal reporter has kept.

    It looks for garbage several times while it ends, each time among three objects a report, which
    takes longer than to free them.

    :param reporter: the plugin ``terminalreporter``; nothing happens to what it keeps before the
        process ends, or if it is gone by then.
    """
    reference = weakref.ref(reporter)

    def free() -> None:
        stats = getattr(reference(), "stats", None)
        if isinstance(stats, dict):
            stats.clear()

    atexit.register(free)
