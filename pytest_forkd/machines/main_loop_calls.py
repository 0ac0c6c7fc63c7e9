"""Work in threads, whose results are handled in the controller's main loop."""

from __future__ import annotations

import collections
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pytest_forkd.channel.event_queue import EventQueue
from pytest_forkd.machines.machine import MachineError
from pytest_forkd.runtime.wakeup import Wakeup

__all__ = ["Mailbox"]

#: Threads for calls that may wait: requests to daemons, and removing machines.
_THREADS = 32


class Mailbox:
    """Queues calls for the main loop, from any thread."""

    def __init__(self) -> None:
        self._mail: collections.deque[Callable[[], None]] = collections.deque()
        self._wakeup = Wakeup()
        self._pool = ThreadPoolExecutor(_THREADS, "forkd-machines")

    def listen(self, events: EventQueue) -> None:
        """Make this main loop run the calls."""
        events.unregister(self._wakeup)
        events.register(self._wakeup, self._read)

    def post(self, call: Callable[[], None]) -> None:
        """Have something called in the main loop."""
        self._mail.append(call)
        self._wakeup.wake()

    def submit(self, work: Callable[..., Any], *args: Any) -> None:
        """Run something in a thread, and ignore its result and exceptions."""
        self._pool.submit(work, *args)

    def in_thread(
        self,
        work: Callable[[], Any],
        done: Callable[[Any], None],
        failed: Callable[[str], None],
    ) -> None:
        """Run something in a thread, and handle its result in the main loop.

        :param done: called with the result, in the main loop.
        :param failed: called instead with the reason, if an exception was raised.
        """

        def run() -> None:
            try:
                result = work()
            except MachineError as exc:
                reason = str(exc)
            except Exception as exc:
                reason = f"{type(exc).__name__}: {exc}"
            else:
                self.post(lambda: done(result))
                return
            self.post(lambda: failed(reason))

        self._pool.submit(run)

    def finish(self) -> None:
        """Wait until all work in threads is done; nothing more is called in the main loop."""
        self._pool.shutdown(wait=True)

    def close(self, events: EventQueue | None) -> None:
        """Stop running calls."""
        if events is not None:
            events.unregister(self._wakeup)
        self._wakeup.close()

    def _read(self) -> None:
        self._wakeup.take()
        for _ in range(len(self._mail)):
            self._mail.popleft()()
