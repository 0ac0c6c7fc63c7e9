"""Reads ``/proc/PID/stat``."""

from __future__ import annotations

__all__ = ["read_stat"]


def read_stat(pid: int | str) -> list[str] | None:
    """The fields of ``/proc/PID/stat`` from the third (the state) on; see proc_pid_stat(5).

    :param pid: a pid, or ``self``.
    :returns: ``None`` if there is no such process, or no ``/proc``.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # pid (comm) state ppid ...; comm may contain anything, so split at the last ")".
            return file.read().rpartition(b")")[2].decode("ascii").split()
    except OSError:
        return None
