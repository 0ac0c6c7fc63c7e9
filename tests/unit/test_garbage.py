"""The controller's last looks for garbage."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from _pytest import unraisableexception

from pytest_forkd.runtime import gc_tuning as garbage


@pytest.mark.skipif(
    not hasattr(unraisableexception, "gc_collect_harder"), reason="pytest before 8.4 does not look"
)
def test_the_last_look_ends_with_the_first_pass_that_finds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a finalizer leaves behind is found by the next pass."""
    finalized = []

    class Chain:
        def __init__(self, length: int) -> None:
            self.me, self.length = self, length

        def __del__(self) -> None:
            finalized.append(self.length)
            if self.length > 1:
                Chain(self.length - 1)

    passes = []

    def count(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == 2:
            passes.append(info["collected"])

    harder = unraisableexception.gc_collect_harder
    monkeypatch.setattr(unraisableexception, "gc_collect_harder", harder)
    garbage.end_when_nothing_is_found()
    gc.collect()
    gc.callbacks.append(count)
    try:
        Chain(3)
        unraisableexception.gc_collect_harder(5)
    finally:
        gc.callbacks.remove(count)
    assert finalized == [3, 2, 1]
    assert len(passes) == 4
    assert passes[-1] == 0


def test_thresholds_that_somebody_sets_during_a_run_stay() -> None:
    before = gc.get_threshold()
    with garbage.fewer_full_collections():
        assert gc.get_threshold()[2] > before[2]
    assert gc.get_threshold() == before
    try:
        with garbage.fewer_full_collections():
            gc.set_threshold(5, 6, 7)
        assert gc.get_threshold() == (5, 6, 7)
    finally:
        gc.set_threshold(*before)


def test_what_the_terminal_has_kept_is_there_until_the_process_ends() -> None:
    """A program that has called ``pytest.main()`` may look at it."""
    program = """
import atexit
from pytest_forkd.runtime.gc_tuning import without_reports_at_exit

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
