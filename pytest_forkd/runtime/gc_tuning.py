"""Saves garbage collections that would find next to nothing."""

from __future__ import annotations

import atexit
import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from pytest_forkd.compat.pytest import look_for_garbage_with
from pytest_forkd.runtime import frozen_gc as frozen

__all__ = ["end_when_nothing_is_found", "fewer_full_collections", "without_reports_at_exit"]

_RARER = 10


@contextlib.contextmanager
def fewer_full_collections() -> Iterator[None]:
    """Have fewer full collections, while reports are coming in.

    The terminal reporter keeps every report, so the number of objects only grows, and Python starts
    a full collection each time it has grown by a quarter. Collections of young objects stay as
    frequent as before.
    """
    before = gc.get_threshold()
    rarer = (before[0], before[1], before[2] * _RARER)
    gc.set_threshold(*rarer)
    try:
        yield
    finally:
        if gc.get_threshold() == rarer:  # else other code has set the thresholds meanwhile
            gc.set_threshold(*before)


def end_when_nothing_is_found(frozen_may_tell: Callable[[], bool] = lambda: False) -> None:
    """End pytest's final garbage collection with the first pass that finds nothing.

    When pytest unconfigures, it collects five times in a row, to find finalizers that raise: a
    finalizer may create new garbage (``_pytest.unraisableexception``). After a pass that finds
    nothing, further passes find nothing, either, and in the controller each one visits the reports
    of all tests. pytest before 8.4 has no final collection.

    :param frozen_may_tell: called first; returns whether a frozen object could raise or warn when
        it is freed. If not, frozen objects are not collected.
    """

    def look(iterations: int) -> None:
        if frozen_may_tell():
            frozen.thaw()
        for _ in range(iterations):
            if not frozen.collect_others():
                return

    look_for_garbage_with(look)


def without_reports_at_exit(reporter: Any) -> None:
    """Free the reports that a terminal reporter keeps before the interpreter shuts down.

    While it shuts down, the interpreter collects garbage several times, and visits three objects
    per report each time. Freeing them first is faster.

    :param reporter: the plugin ``terminalreporter``; it keeps its reports until the process ends.
    """
    reference = weakref.ref(reporter)

    def free() -> None:
        stats = getattr(reference(), "stats", None)
        if isinstance(stats, dict):
            stats.clear()

    atexit.register(free)
