"""Which items a worker has begun: a byte-range lock per item, in a file that both ends have open.

A worker reads no messages while a test runs, yet the controller must be able to take back the items
queued behind that test. So a worker claims an item, by locking the byte at the item's index, before
the item becomes its current or next one; the controller takes an item back by locking it first.
Locks are POSIX record locks (``fcntl(2)``, ``F_SETLK``): they belong to the process, are not
inherited by what a test forks, and vanish with the worker.
"""

from __future__ import annotations

import fcntl
import os
import tempfile

__all__ = ["Claims", "claims_file"]


def claims_file() -> int:
    """Make an unnamed file to lock bytes of.

    :returns: its descriptor, owned by the caller.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pytest-forkd-claims")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Claims:
    """One side's view of a claims file, whose descriptor it owns."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def claim(self, index: int) -> bool:
        """Take the item at ``index``; false if the other side has it."""
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, index)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the file, which releases every claim of this process."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
