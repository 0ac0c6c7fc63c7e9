"""The controller's queue of events, which fills itself from sockets.

It replaces the :class:`queue.Queue` of xdist's session, and reads from all sockets that are ready
while the session waits for an event.
"""

from __future__ import annotations

import collections
import contextlib
import queue
import selectors
import time
from collections.abc import Callable
from typing import Any

__all__ = ["EventQueue"]

#: Seconds to let messages gather at a high rate: too short for a person to notice, and long enough
#: for some twenty of the shortest tests.
_GATHER = 0.004
#: The high rate, in messages a second, and the seconds over which messages are counted.
_DENSE = 1000
_WINDOW = 0.01


class EventQueue:
    """A queue of events, fed by ``put`` and by the readiness of registered files.

    It has the part of :class:`queue.Queue`'s interface that ``xdist.dsession.DSession`` uses.
    Everything happens in the thread that calls :meth:`get`.

    At a high rate of messages it does not wait for each one, but sleeps while they gather. Sending
    to a process that is waiting costs the worker the wake-up, which matters if tests are short, and
    the two processes may have to share a processor.
    """

    def __init__(self) -> None:
        self._events: collections.deque[tuple[str, dict[str, Any]]] = collections.deque()
        self._later: list[tuple[float, tuple[str, dict[str, Any]]]] = []
        self._selector = selectors.DefaultSelector()
        self._arrived = 0
        self._since = time.monotonic()
        self._dense = False
        #: Called before :meth:`get` waits; returns the most seconds to wait, or ``None``.
        self.before_wait: Callable[[], float | None] | None = None

    def put(self, event: tuple[str, dict[str, Any]]) -> None:
        """Append an event: its name and its arguments."""
        self._events.append(event)
        self._arrived += 1

    def put_later(self, seconds: float, event: tuple[str, dict[str, Any]]) -> None:
        """Append an event once ``seconds`` have passed, or a little later."""
        self._later.append((time.monotonic() + seconds, event))

    def get(self, block: bool = True, timeout: float | None = None) -> tuple[str, dict[str, Any]]:
        """The next event.

        :param timeout: seconds to wait for one; ``None`` means no limit.
        :raises queue.Empty: if none came in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._events:
            if block and self._is_dense():
                time.sleep(_GATHER)
            self.poll(self._patience(deadline) if block else 0)
            self._put_due()
            if not self._events and (
                not block or (deadline is not None and time.monotonic() >= deadline)
            ):
                raise queue.Empty
        return self._events.popleft()

    def _is_dense(self) -> bool:
        """Whether messages came at a high rate when they were last counted."""
        now = time.monotonic()
        elapsed = now - self._since
        if elapsed >= _WINDOW:
            self._dense = self._arrived > elapsed * _DENSE
            self._since, self._arrived = now, 0
        return self._dense

    def _patience(self, deadline: float | None) -> float | None:
        """Seconds to wait at most; ``None`` if there is no limit."""
        limits = [when for when, _event in self._later]
        if deadline is not None:
            limits.append(deadline)
        if self.before_wait is not None:
            seconds = self.before_wait()
            if seconds is not None:
                limits.append(time.monotonic() + seconds)
        return max(0.0, min(limits) - time.monotonic()) if limits else None

    def _put_due(self) -> None:
        if self._later:
            now = time.monotonic()
            self._events.extend(event for when, event in self._later if when <= now)
            self._later = [entry for entry in self._later if entry[0] > now]

    def poll(self, timeout: float | None) -> None:
        """Wait for a registered file to be ready and let its callback run."""
        for key, _mask in self._selector.select(timeout):
            key.data()

    def register(self, fileobj: Any, callback: Callable[[], object]) -> None:
        """Call ``callback`` whenever ``fileobj`` can be read, until :meth:`unregister`."""
        self._selector.register(fileobj, selectors.EVENT_READ, callback)

    def watch_room(self, fileobj: Any, wanted: bool) -> None:
        """Begin, or stop, to call a registered file's callback also when the file is writable."""
        with contextlib.suppress(KeyError, ValueError):
            key = self._selector.get_key(fileobj)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
            self._selector.modify(fileobj, events, key.data)

    def unregister(self, fileobj: Any) -> None:
        """Forget ``fileobj``; nothing happens if it is not registered (any more)."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fileobj)

    def close(self) -> None:
        """Forget everything."""
        self._events.clear()
        self._later.clear()
        self._selector.close()
