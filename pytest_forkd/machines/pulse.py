"""Whether a guest that has a worker still answers, however long the worker's test takes."""

from __future__ import annotations

from pytest_forkd.channel.frames import FrameError

__all__ = ["Pulse", "Silent"]

#: Seconds of waiting for a guest before it is asked whether it is still there.
INTERVAL = 30.0
#: Seconds for it to answer that.
LIMIT = 60.0


class Silent(Exception):
    """A guest has not answered in time; the message says so."""


class Pulse:
    """Says when to ask a guest for an answer, and when there should have been one.

    Only such time counts as was spent waiting for the guest: a controller whose terminal has been
    stopped reads nothing for a while, which is not the guest's fault. What else the guest sends
    does not count as an answer, or it could go on with that for ever.

    :param interval: seconds of waiting after which it is asked; default :data:`INTERVAL`.
    :param limit: seconds of waiting for the answer; default :data:`LIMIT`.
    """

    def __init__(self, interval: float | None = None, limit: float | None = None) -> None:
        self._interval = INTERVAL if interval is None else interval
        self._limit = LIMIT if limit is None else limit
        #: What the guest was asked with last.
        self.number = 0
        self._asked = False
        self._waited = 0.0

    @property
    def patience(self) -> float:
        """Seconds to wait for the guest until :meth:`waited` has something to say."""
        return max(0.0, (self._limit if self._asked else self._interval) - self._waited)

    def waited(self, seconds: float) -> int | None:
        """So much more time was spent waiting for the guest.

        :returns: the number to ask it with, if it is time to ask.
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
        """The guest has answered.

        :raises FrameError: if it was not asked, or something else.
        """
        if not self._asked or number != self.number:
            raise FrameError(f"it answers {number}, which it was not asked")
        self._asked, self._waited = False, 0.0
