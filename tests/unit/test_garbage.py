"""The controller's last looks for garbage."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

from pytest_forkd.garbage import last_collection, thaw


def test_what_there_is_is_collected_and_then_left_alone_until_thawed() -> None:
    """A process may hold several sessions, whose garbage must not stay for ever."""

    class Cycle:
        def __init__(self) -> None:
            self.me = self

    thaw()
    before = gc.get_freeze_count()
    cycle = weakref.ref(Cycle())
    last_collection()
    frozen = gc.get_freeze_count()
    assert frozen > before
    assert not [each for each in gc.get_objects() if isinstance(each, Cycle)]
    assert cycle() is None, "frozen objects are not among those"
    last_collection()  # of a session within a session: not its business
    assert gc.get_freeze_count() == frozen
    thaw()
    assert gc.get_freeze_count() <= before
    last_collection()
    assert gc.get_freeze_count() > before, "the next session's"
    thaw()


def test_what_the_terminal_has_kept_is_there_until_the_process_ends() -> None:
    """A program that has called ``pytest.main()`` may look at it."""
    program = """
import atexit
from pytest_forkd.garbage import without_reports_at_exit

class Reporter:
    def __init__(self):
        self.stats = {"passed": [object()]}

kept, gone = Reporter(), Reporter()
atexit.register(lambda: print("at the end", kept.stats))
without_reports_at_exit(kept)
without_reports_at_exit(gone)
without_reports_at_exit(object)  # has none
del gone
print("before", list(kept.stats))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "before ['passed']\nat the end {}\n"
    assert done.stderr == ""
