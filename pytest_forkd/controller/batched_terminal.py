"""Flushes the terminal reporter's output in batches, unless it goes to a terminal.

pytest's terminal reporter flushes after every report, three times a test. With a pipe or a file,
each flush costs a system call, and often a switch to the reading process. There the controller
flushes :data:`LATENCY` seconds after the first request, whether it is waiting for workers or not.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from pytest_forkd.compat.pytest import terminal_file, use_terminal_file

__all__ = ["LATENCY", "BatchedFile", "batched_terminal"]

#: Seconds by which a flush is delayed.
LATENCY = 0.05


class BatchedFile:
    """A text file with a delayed :meth:`flush`; all else is passed to the file.

    Data goes to the file's own buffer at once, so its order stays the same even if others write to
    the file directly.
    """

    def __init__(self, file: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._since: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write; the text is flushed in time even if nobody calls :meth:`flush`."""
        if self._since is None:
            self._since = self._clock()
        return self._file.write(text)  # type: ignore[no-any-return]

    def flush(self) -> None:
        """Flush if data has been waiting for :data:`LATENCY` seconds."""
        now = self._clock()
        if self._since is None:
            self._since = now
        elif now - self._since >= LATENCY:
            self.flush_now()

    def flush_in_time(self) -> float | None:
        """Flush if it is time.

        :returns: the seconds until it will be time; ``None`` if there is nothing to flush.
        """
        if self._since is None:
            return None
        elapsed = self._clock() - self._since
        if elapsed < LATENCY:
            return LATENCY - elapsed
        self.flush_now()
        return None

    def flush_now(self) -> None:
        """Flush if there is something to flush."""
        if self._since is not None:
            self._since = None
            self._file.flush()


@contextlib.contextmanager
def batched_terminal(reporter: Any) -> Iterator[Callable[[], float | None] | None]:
    """Batch the flushes of a terminal reporter, until the end of the block.

    :param reporter: the plugin ``terminalreporter``, or ``None``.
    :returns: a function to call before waiting for anything, and again after the seconds that it
        returns; ``None`` if output is not batched: on a terminal, or if the reporter has no writer
        like pytest's.
    """
    file = terminal_file(reporter)
    if file is None or file.isatty():
        yield None
        return
    batched = BatchedFile(file)
    use_terminal_file(reporter, batched)
    try:
        yield batched.flush_in_time
    finally:
        if terminal_file(reporter) is batched:
            use_terminal_file(reporter, file)
        batched.flush_now()
