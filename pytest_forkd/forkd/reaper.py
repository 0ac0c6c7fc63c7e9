"""A small process that deletes what a controller has made if the controller is killed.

It is started by path, in an interpreter without site-packages and this package, so that it costs
next to nothing, and waits for the controller's end. If the controller has left its record, the
process runs itself again with exec, as an ordinary Python, to delete what is on the record. What is
at a daemon that cannot be reached is left for ``pytest-forkd prune``.

Until then it must import only the standard library.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

__all__ = ["Reaper"]

#: Seconds before each further attempt to reach a daemon.
_PAUSES = (1.0, 3.0, 10.0, 30.0)


class Reaper:
    """The controller's handle on its reaper.

    :param record: the run's record, which may not exist yet.
    :param token_file: the file with the token; ``None`` if the token is in the environment.
    :param ca: the file with the certificates to trust.
    :raises OSError: if the process cannot be started.
    """

    def __init__(self, record: str, token_file: str | None = None, ca: str | None = None) -> None:
        import subprocess

        read, self._write = os.pipe()  # the write end closes when this process ends
        command = [sys.executable, "-I", "-S", os.path.abspath(__file__), "wait"]
        command += [str(read), str(os.getpid()), record]
        command += [os.path.abspath(token_file) if token_file else ""]
        command += [os.path.abspath(ca) if ca else ""]
        # GitHub's runner kills leftover processes of a job, which have this variable. Not this one.
        environ = {k: v for k, v in os.environ.items() if k != "RUNNER_TRACKING_ID"}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[read],
                start_new_session=True,
                cwd="/",
                env=environ,
            )
        except OSError:
            os.close(self._write)
            raise
        finally:
            os.close(read)

    @property
    def pid(self) -> int:
        """The reaper's process id."""
        return self._process.pid

    def close(self, timeout: float = 5.0) -> None:
        """Release the reaper, which now deletes what is still on the record. Safe to call twice.

        :param timeout: seconds to wait for its end; it may go on after that.
        """
        import subprocess

        if self._write >= 0:
            os.close(self._write)
            self._write = -1
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
            # If it goes on, prevent subprocess's warning that it is still running.
            self._process.returncode = self._process.returncode or 0


def _wait(fd: int, pid: int) -> None:
    """Wait until the controller has closed its end, or has ended."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # if it has gone, the pipe shows that, too
            poller.register(os.pidfd_open(pid), select.POLLIN)
    # No limit, since the controller may run for any time. The process is watched in addition to the
    # pipe, since a child of the controller may hold the pipe open.
    poller.poll()


def _delete(record: str, token_file: str | None, ca: str | None) -> int:
    from pathlib import Path

    from pytest_forkd.forkd.cleaning import connect_for, delete_recorded
    from pytest_forkd.forkd.errors import ForkdError
    from pytest_forkd.forkd.records import Records

    path = Path(record)
    for pause in (0.0, *_PAUSES):
        time.sleep(pause)
        with contextlib.suppress(ForkdError):
            records = Records(path.parent)
            run = records.read(path)
            if run is None:
                return 0
            delete_recorded(records, run, connect_for(run, token_file, ca))
            if run.is_empty:
                return 0
    return 1


def main(argv: list[str]) -> int:
    """Wait (``wait``), or delete (``delete``), as the first argument says."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # these are for the controller
    what, fd, pid, record, token_file, ca = argv
    if what == "delete":
        return _delete(record, token_file or None, ca or None)
    _wait(int(fd), int(pid))
    if not os.path.exists(record):
        return 0
    again = [sys.executable, os.path.abspath(__file__), "delete", *argv[1:]]
    return os.execv(sys.executable, again)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    _package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if sys.path and os.path.abspath(sys.path[0]) == os.path.join(_package, "forkd"):
        del sys.path[0]  # modules in this directory must not shadow others
    if os.path.dirname(_package) not in sys.path:
        sys.path.append(os.path.dirname(_package))
    sys.exit(main(sys.argv[1:]))
