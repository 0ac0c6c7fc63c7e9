"""What the kernel says of a process in one line."""

from __future__ import annotations

__all__ = ["read_stat"]


def read_stat(pid: int | str) -> list[str] | None:
    """The fields of ``/proc/PID/stat`` from the third one on, the state; see proc_pid_stat(5).

    :param pid: a number, or ``self``.
    :returns: ``None`` where there is no such process, or no ``/proc``.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # pid (comm) state ppid ...; comm may hold anything, so look behind the last ")".
            return file.read().rpartition(b")")[2].decode("ascii").split()
    except OSError:
        return None
