"""The controller's last look for garbage."""

from __future__ import annotations

import gc

from pytest_forkd.garbage import last_collection, thaw


def test_what_there_is_is_collected_and_then_left_alone_until_thawed() -> None:
    """A process may hold several sessions, whose garbage must not stay for ever."""

    class Cycle:
        def __init__(self) -> None:
            self.me = self

    thaw()
    before = gc.get_freeze_count()
    Cycle()
    last_collection()
    frozen = gc.get_freeze_count()
    assert frozen > before
    assert not [each for each in gc.get_objects() if isinstance(each, Cycle)]
    last_collection()  # of a session within a session: not its business
    assert gc.get_freeze_count() == frozen
    thaw()
    assert gc.get_freeze_count() <= before
    last_collection()
    assert gc.get_freeze_count() > before, "the next session's"
    thaw()
