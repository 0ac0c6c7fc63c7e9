"""How often a run looks for garbage that is not there."""

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
    """Look through long-lived objects less often, while reports are coming in.

    The terminal reporter keeps every report, so the session's objects only grow in number, and
    Python's collector takes each growth by a quarter for a reason to look through all of them.
    Young objects are looked through as often as ever.
    """
    before = gc.get_threshold()
    rarer = (before[0], before[1], before[2] * _RARER)
    gc.set_threshold(*rarer)
    try:
        yield
    finally:
        if gc.get_threshold() == rarer:  # else somebody has set others meanwhile
            gc.set_threshold(*before)


def end_when_nothing_is_found(frozen_may_tell: Callable[[], bool] = lambda: False) -> None:
    """Have pytest's last look for garbage end with the first pass that finds nothing.

    pytest looks through everything five times in a row when it unconfigures, to find what raises
    in a finalizer, for a finalizer may leave garbage of its own (``_pytest.unraisableexception``).
    After a pass that finds nothing the next ones find nothing, too; in the controller each of them
    looks through the reports of all tests. pytest before 8.4 does not look.

    :param frozen_may_tell: whether a frozen object could raise or warn when it is freed; else they
        are left out. Called before the look.
    """

    def look(iterations: int) -> None:
        if frozen_may_tell():
            frozen.thaw()
        for _ in range(iterations):
            if not frozen.collect_others():
                return

    look_for_garbage_with(look)


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
