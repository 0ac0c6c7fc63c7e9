"""Checks that a guest with a worker still answers, however long the worker's test takes."""

from __future__ import annotations

from pytest_forkd.channel.frames import FrameError

__all__ = ["Pulse", "Silent"]

#: Seconds of waiting for a guest before it is sent a ping.
INTERVAL = 30.0
#: Seconds for it to answer a ping.
LIMIT = 60.0


class Silent(Exception):
    """A guest has not answered in time; the message says so."""


class Pulse:
    """Decides when to ping a guest, and when its answer is overdue.

    Only time spent waiting for the guest counts: if the controller is suspended (Ctrl-Z), it reads
    nothing for a while, which is not the guest's fault. Other data from the guest does not count as
    an answer, or a guest could keep the run waiting by sending that.

    :param interval: seconds of waiting after which it is pinged; default :data:`INTERVAL`.
    :param limit: seconds of waiting for the answer; default :data:`LIMIT`.
    """

    def __init__(self, interval: float | None = None, limit: float | None = None) -> None:
        self._interval = INTERVAL if interval is None else interval
        self._limit = LIMIT if limit is None else limit
        #: The number in the last ping.
        self.number = 0
        self._asked = False
        self._waited = 0.0

    @property
    def patience(self) -> float:
        """Seconds to wait for the guest before calling :meth:`waited`."""
        return max(0.0, (self._limit if self._asked else self._interval) - self._waited)

    def waited(self, seconds: float) -> int | None:
        """Add time that was spent waiting for the guest.

        :returns: the number for a ping, if it is time for one.
        :raises Silent: if it should have answered by now.
        """
        self._waited += seconds
        if self.patience > 0:
            return None
        if self._asked:
            raise Silent(
                f"it has not answered for {self._limit:g} seconds, though it has a worker: "
                "the guest, or our process in it, stands still"
            )
        self._asked, self._waited = True, 0.0
        self.number += 1
        return self.number

    def answered(self, number: int) -> None:
        """Record an answer of the guest.

        :raises FrameError: if there was no ping, or if it had another number.
        """
        if not self._asked or number != self.number:
            raise FrameError(f"it answers {number}, which it was not asked")
        self._asked, self._waited = False, 0.0
