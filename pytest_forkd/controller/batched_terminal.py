"""The terminal's output, flushed in batches where nobody watches it grow.

pytest's terminal reporter flushes after every report, three times a test. Into a pipe or a file
that is a system call a test, and often a switch to whoever reads; there the controller flushes
:data:`LATENCY` seconds after it was first asked to, whether it waits for its workers then or not.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from pytest_forkd.compat.pytest import terminal_file, use_terminal_file

__all__ = ["LATENCY", "BatchedFile", "batched_terminal"]

#: Seconds that a flush is put off.
LATENCY = 0.05


class BatchedFile:
    """A text file whose :meth:`flush` is put off; everything else is the file's own.

    What is written goes to the file's own buffer at once, so the order of everything that is
    written to it, by whomever, stays what it is.
    """

    def __init__(self, file: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._since: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write, and have it flushed in time, whether somebody asks for that or not."""
        if self._since is None:
            self._since = self._clock()
        return self._file.write(text)  # type: ignore[no-any-return]

    def flush(self) -> None:
        """Flush if there has been something to flush for :data:`LATENCY` seconds."""
        now = self._clock()
        if self._since is None:
            self._since = now
        elif now - self._since >= LATENCY:
            self.flush_now()

    def flush_in_time(self) -> float | None:
        """Flush if it is time to.

        :returns: the seconds until it will be; ``None`` if there is nothing to flush.
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
    :returns: what to call before waiting for anything, and again after the seconds that it returns;
        ``None`` where the output stays live: on a terminal, or for a reporter that has no writer
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
