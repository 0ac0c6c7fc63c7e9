"""What /proc tells of processes, see proc(5)."""

from __future__ import annotations

import contextlib
import os

__all__ = ["catches", "command_of", "namespace_of", "processes"]


def processes() -> dict[int, tuple[str, int]]:
    """State and parent of every process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                found[int(name)] = (fields[0].decode(), int(fields[1]))
    return found


def namespace_of(pid: int) -> str | None:
    """The mount namespace that a process is in; ``None`` if it has gone."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/mnt")
    return None


def catches(pid: int, signum: int) -> bool:
    """Whether a process has a handler for a signal."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8") as file:
        for line in file:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signum - 1) & 1)
    return False


def command_of(pid: int) -> str:
    """A process's command line, for people."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()[:200]
    except OSError:
        return f"process {pid}"
