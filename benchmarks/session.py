"""One benchmark at a time in a checkout, and nothing left running when it ends.

Two at once would share suites and logs and, worse, the machine: each would measure the other.
"""

from __future__ import annotations

import fcntl
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from layout import WORK
from processes import end_processes, marked


@contextmanager
def exclusive() -> Iterator[str]:
    """Give a new session's name; at the end, end all processes whose mark begins with it.

    Raises SystemExit at once where another benchmark of this checkout runs. A request to
    terminate becomes a KeyboardInterrupt, so that it, too, ends what was started.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit("another benchmark of this checkout is running") from None
        name = uuid.uuid4().hex[:12]
        try:
            yield name
        finally:
            end_processes(marked(f"{name}*"))
