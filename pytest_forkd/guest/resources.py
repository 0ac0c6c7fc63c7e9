"""Detects that a test has used up a guest's disks or processes, so that later tests would fail."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from pytest_forkd.guest.restore import SHARED_KERNEL

__all__ = ["Crowd", "CrowdWatch", "Resources"]

#: A file system with fewer free bytes or inodes than this counts as full.
_LEAST_BYTES = 1024 * 1024
_LEAST_INODES = 64
#: There are too many tasks if they are this fraction of those that the kernel allows.
_CROWDED = 0.9
#: If memory runs out before that, more tasks than this are too many. It has run out if less than
#: this fraction is available.
_MANY_TASKS = 1000
_LEAST_MEMORY = 0.05
#: Seconds without a change after which a crowd will not go away by itself. A change is a tenth more
#: tasks, or a tenth fewer that want to run.
_CROWD_LIMIT = 10.0
_CHANGE = 0.1
#: The same if there is no memory left. Then few tasks want to run: they wait for their program to
#: be read from the disk again. A few seconds later nothing runs, this process included.
_STARVED_LIMIT = 1.0


class Crowd(NamedTuple):
    """So many processes that there is no room for others.

    :ivar tasks: how many processes and threads there are. It may be more than the kernel allows,
        which checks their number before it increases it.
    :ivar running: how many of them want to run.
    :ivar reason: what has run out, in words.
    :ivar starved: whether almost no memory is available, either.
    """

    tasks: int
    running: int
    reason: str
    starved: bool = False


class CrowdWatch:
    """Tells a crowd that will stay from one that is just slow to end on a busy machine.

    If a test forks up to the limit and then fails, its processes end once each has had its turn. On
    an emulated processor that may take longer than any fixed limit. But as long as the crowd grows,
    or fewer and fewer of its tasks want to run, there is progress.
    """

    def __init__(self) -> None:
        self._seen: Crowd | None = None
        self._changed = 0.0
        self._starved_since: float | None = None

    def stays(self, crowd: Crowd | None, now: float) -> bool:
        """Whether the crowd has to be ended.

        :param crowd: the current crowd, if any.
        :param now: the time, by ``time.monotonic()``.
        """
        seen = self._seen
        if crowd is None:
            self._seen = self._starved_since = None
            return False
        if not crowd.starved:
            self._starved_since = None
        elif self._starved_since is None:
            self._starved_since = now
        elif now - self._starved_since >= _STARVED_LIMIT:
            return True
        if seen is None:
            self._seen, self._changed = crowd, now
            return False
        if crowd.tasks > seen.tasks * (1 + _CHANGE):
            self._seen, self._changed = crowd, now
        elif crowd.running < seen.running * (1 - _CHANGE):
            # Keep the largest size: a crowd that shrinks and grows again makes no progress.
            self._seen, self._changed = seen._replace(running=crowd.running), now
        return now - self._changed >= _CROWD_LIMIT


class Resources:
    """Disks and processes of this guest; made when its worker begins.

    A file system that is full by then, such as a mounted image, is not checked later. If the guest
    shares its kernel, as in a container, nothing is checked: others may have used it up.

    :param proc: where proc(5) is.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._shared = bool(os.environ.get(SHARED_KERNEL))
        self._places = [] if self._shared else [p for p in self._mounts() if not _is_full(p)]

    def exhausted(self) -> str | None:
        """What has run out, in words; ``None`` if tests can go on here."""
        for place in self._places:
            if _is_full(place):
                return f"the file system of {place} is full"
        crowd = self.crowd()
        return None if crowd is None else crowd.reason

    def crowd(self) -> Crowd | None:
        """The crowd, if there are too many processes; else ``None``."""
        if self._shared:
            return None
        try:
            # "0.20 0.18 0.12 1/80 11206": 1 of 80 tasks (processes and threads) is running
            running, tasks = map(int, self._read("loadavg").split()[3].split("/"))
            allowed = min(int(self._read(f"sys/kernel/{n}")) for n in ("threads-max", "pid_max"))
            crowded = tasks >= _CROWDED * allowed
            if crowded or tasks > _MANY_TASKS:  # else there is no need to read how much memory
                starved = self._is_starved()
                if crowded:
                    reason = f"it has {tasks} processes and threads, of {allowed} at most"
                    return Crowd(tasks, running, reason, starved)
                if starved:
                    reason = f"it has {tasks} processes and threads, and no memory left"
                    return Crowd(tasks, running, reason, starved)
        except (OSError, ValueError, LookupError, AttributeError):
            pass  # no memory or descriptor left to read it, or another kind of kernel
        return None

    def _is_starved(self) -> bool:
        """Whether next to no memory is available; not if the kernel does not tell."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            text = self._read("meminfo")
            found = dict(re.findall(r"^(MemTotal|MemAvailable): +(\d+)", text, re.M))
            return int(found["MemAvailable"]) < _LEAST_MEMORY * int(found["MemTotal"])
        return False

    def _mounts(self) -> list[str]:
        """Mount points of writable file systems."""
        places: dict[str, None] = {}
        with contextlib.suppress(OSError, IndexError):
            for line in self._read("self/mounts").splitlines():
                place = re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), line.split()[1])
                with contextlib.suppress(OSError):
                    status = os.statvfs(place)
                    if status.f_blocks and not status.f_flag & os.ST_RDONLY:
                        places[place] = None
        return list(places)

    def _read(self, name: str) -> str:
        return (self._proc / name).read_text("utf-8", "surrogateescape")


def _is_full(place: str) -> bool:
    try:
        status = os.statvfs(place)
    except OSError:
        return False  # a test has unmounted it, or removed a directory above it
    inodes = status.f_files > 0 and status.f_favail < _LEAST_INODES
    return status.f_bavail * status.f_frsize < _LEAST_BYTES or inodes
