"""Wakes a loop that waits for sockets."""

from __future__ import annotations

import contextlib
import socket

__all__ = ["Wakeup"]


class Wakeup:
    """A pair of sockets: a thread or signal handler writes to one, the loop waits for the other."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._reader.fileno()

    @property
    def signal_fd(self) -> int:
        """A descriptor for ``signal.set_wakeup_fd``."""
        return self._writer.fileno()

    def wake(self) -> None:
        """Wake the loop; does nothing if that is pending already, or if the sockets are closed."""
        with contextlib.suppress(OSError):
            self._writer.send(b"!")

    def take(self) -> None:
        """Clear all wake-ups so far."""
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass

    def close(self) -> None:
        """Close both; safe to call twice."""
        self._reader.close()
        self._writer.close()
