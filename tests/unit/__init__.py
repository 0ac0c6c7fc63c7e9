"""Properties of single modules; everything here runs in the test process or in a fork of it."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hypothesis import settings

__all__ = ["in_a_fork", "no_longer_than", "property_based"]

#: For tests of properties: machines that run tests are busy, so no limit for a single example.
property_based = settings(deadline=None, max_examples=80)


def in_a_fork(function: Callable[[], object]) -> int:
    """Call ``function`` in a fork of this process, for what changes the process for good.

    :returns: the fork's exit status: 0 if the function returned, negative after a signal.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Let what waits for ever fail instead."""

    def fail(signum: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not done within {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
