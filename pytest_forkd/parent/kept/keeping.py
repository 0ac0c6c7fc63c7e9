"""How long an idle parent is kept."""

from __future__ import annotations

import contextlib
import os
import time

from pytest_forkd.parent.kept.entries import Place

__all__ = ["Keeping"]

#: Seconds between checks for a reason to end.
CHECK_INTERVAL = 2.0
#: How many parents are kept for a user, unless a run asks for another number.
_DEFAULT_MOST = 4
#: An idle parent ends when less than this fraction of the memory is available.
_LOW_MEMORY = 0.05


class Keeping:
    """Decides when an idle parent ends.

    :param place: the parent's own entry; a parent whose entry is gone ends. ``None`` for a parent
        that belongs to one run.
    :param seconds: how long to stay without being used.
    :param project: the root directory and the ini file of the suite that it is kept for.
    """

    def __init__(self, place: Place | None, seconds: float, project: str) -> None:
        self.place = place
        self.seconds = seconds
        self.most = _DEFAULT_MOST
        self._root = project.partition("|")[0]
        self.started = self.last_use = time.monotonic()
        # A parent must not outlive the login. systemd-logind(8) removes this directory when the
        # user's last session ends (unless "lingering" is on). Without it, only time ends a parent.
        home = f"/run/user/{os.getuid()}"
        self._login = home if os.path.isdir(home) else None

    def wanted(self, seconds: float, most: int) -> None:
        """Take over what a run asks for.

        :param seconds: how long the user wants the parent kept after this use.
        :param most: how many parents the user wants kept.
        """
        self.seconds, self.most = seconds, most
        self.used()

    def used(self) -> None:
        """Record that the parent is in use, or was until now."""
        self.last_use = time.monotonic()
        if self.place is not None:
            self.place.used()

    def reason_to_end(self) -> str | None:
        """Why an idle parent should end now; ``None`` if it should stay."""
        if time.monotonic() - self.last_use >= self.seconds:
            return f"not used for {self.seconds:g} seconds"
        if self.place is not None:
            if not self.place.exists():
                return "its directory is gone"
            if self.place.used_later() >= self.most:
                return f"{self.most} others were used since"
        if self._root and not os.path.lexists(self._root):
            return "the suite's root directory is gone"
        if self._login is not None and not os.path.isdir(self._login):
            return "its user has logged out"
        if memory_is_low():
            return "memory is low"
        return None


def memory_is_low() -> bool:
    """Whether the machine, or this process's control group, is about to run out of memory.

    Sources: proc_meminfo(5), and memory.current and memory.max of Linux's cgroup-v2.rst.
    """
    with contextlib.suppress(OSError, KeyError, ValueError, IndexError):
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        total, available = (int(fields[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
        if available < total * _LOW_MEMORY:
            return True
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            group = next(line[3:].strip() for line in file if line.startswith("0::"))
        base = f"/sys/fs/cgroup{group}"
        with open(f"{base}/memory.max", encoding="ascii") as file:
            limit = int(file.read())  # "max" is no number
        with open(f"{base}/memory.current", encoding="ascii") as file:
            current = int(file.read())
        with open(f"{base}/memory.stat", encoding="ascii") as file:
            statistics = dict(line.split() for line in file)
        # Cached file pages can be reclaimed, so they do not count.
        return current - int(statistics.get("inactive_file", 0)) > limit * (1 - _LOW_MEMORY)
    return False
