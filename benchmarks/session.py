"""One benchmark at a time in a checkout, and nothing left running when it ends.

Two at once would share suites and logs and, worse, the machine: each would measure the other.
What runners keep between runs is private to a session, too: nobody else's is used, or ended.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from layout import WORK
from processes import end_processes, marked

RUNTIME = "XDG_RUNTIME_DIR"


@contextmanager
def exclusive() -> Iterator[str]:
    """Give a new session's name; at the end, end all processes whose mark begins with it.

    Meanwhile `XDG_RUNTIME_DIR` is a directory of the session's own, for all that it starts.
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
        with private_runtime() as path:
            before = os.environ.get(RUNTIME)
            os.environ[RUNTIME] = path
            try:
                yield name
            finally:
                end_processes(marked(f"{name}*"))
                del os.environ[RUNTIME]
                if before is not None:
                    os.environ[RUNTIME] = before


@contextmanager
def private_runtime() -> Iterator[str]:
    """Give the path of a new runtime directory, which is removed at the end.

    Its name is short and it lies in /tmp whatever `TMPDIR` says: sockets are made in it, and the
    path of a socket may have 107 bytes. Only its owner may enter it.
    """
    path = tempfile.mkdtemp(prefix="fb-", dir="/tmp")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
