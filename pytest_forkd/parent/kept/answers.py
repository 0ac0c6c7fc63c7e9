"""Waiting for the answer of a parent that may be busy, stopped or hung."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pytest_forkd.channel.frames import FrameSocket
from pytest_forkd.runtime.process_tree import Process

__all__ = ["PRELOAD_LIMIT", "NotAnswering", "receive"]

#: Seconds for a parent to import pytest and everything it preloads.
PRELOAD_LIMIT = 300.0
#: Seconds for a parent that is importing what the last run did, or has many files to check.
_BUSY_LIMIT = 10.0
#: Seconds to wait for a parent that is stopped (SIGSTOP); a debugger may stop it for a moment.
_STOPPED_LIMIT = 0.5
#: Seconds to wait for a parent that should answer but uses no CPU time.
_IDLE_LIMIT = 1.5
_LOOK_INTERVAL = 0.05


class NotAnswering(TimeoutError):
    """A parent does not answer; the message says what state it is in."""


def receive(
    connection: FrameSocket,
    process: Process | None,
    state: Callable[[], str],
    limit: float = PRELOAD_LIMIT,
) -> dict[str, Any]:
    """Wait for a parent's next message, as long as it makes sense.

    :param process: the parent, if it is known.
    :param state: tells whether it is ``ready``, ``learning`` or ``preloading``.
    :param limit: seconds to wait for one that is preloading.
    :raises NotAnswering: if it is stopped, hangs, or takes too long in the state that it is in.
    :raises TimeoutError: if it was preloading for longer than ``limit``.
    :raises EOFError: when it closes the connection first.
    :raises FrameError: on a bad frame.
    """
    began = stopped = idle = time.monotonic()
    cpu = -1
    while True:
        try:
            return connection.receive(_LOOK_INTERVAL).message
        except TimeoutError:
            now = time.monotonic()
        phase = state()
        look = process.look() if process is not None else None
        if look is None or not look.is_stopped:
            stopped = now
        elif now - stopped > _STOPPED_LIMIT:
            raise NotAnswering("it is stopped")
        if phase != "ready" or (look is not None and (look.state in "RD" or look.cpu != cpu)):
            idle = now  # it is working, or is ready to run on a busy machine
        elif now - idle > _IDLE_LIMIT:
            raise NotAnswering("it hangs")
        cpu = -1 if look is None else look.cpu
        if phase == "preloading":
            if now - began > limit:
                raise TimeoutError(f"no message within {limit:g} seconds")
        elif now - began > _BUSY_LIMIT:
            what = "hangs" if phase == "ready" else "is still importing what the last run did"
            raise NotAnswering(f"it {what}")
