"""What a test has taken of its guest and not given back, which the tests after it would miss."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from pytest_forkd.guest.restore import SHARED_KERNEL

__all__ = ["Crowd", "CrowdWatch", "Resources"]

#: Bytes and inodes without which next to no test can do.
_LEAST_BYTES = 1024 * 1024
_LEAST_INODES = 64
#: Of the tasks that the kernel allows, the part that is as good as all.
_CROWDED = 0.9
#: Without memory it does not get that far; then so many tasks are a crowd, and so little is none.
_MANY_TASKS = 1000
_LEAST_MEMORY = 0.05
#: Seconds without a change for the better or worse after which a crowd stays one, and what counts
#: as a change: a tenth more processes, or a tenth less of them that want to run.
_CROWD_LIMIT = 10.0
_CHANGE = 0.1
#: The same for a crowd without memory, whose processes do not want to run since each of them waits
#: for its program to be read from the disk again. In another few seconds nothing runs, nor do we.
_STARVED_LIMIT = 1.0


class Crowd(NamedTuple):
    """Processes that leave no room for others.

    :ivar tasks: how many processes and threads there are. May be more than the kernel allows: it
        looks at their number, and adds to it later.
    :ivar running: how many of them want to run.
    :ivar reason: what there is no more of, in words.
    :ivar starved: next to no memory is available, either.
    """

    tasks: int
    running: int
    reason: str
    starved: bool = False


class CrowdWatch:
    """Tells a crowd that stays from one that a busy machine has not got through yet.

    A test that forks up to the limit and then fails is over when each process has had its turn. On
    an emulated processor that takes longer than any fixed time: as long as the crowd grows, or
    fewer and fewer of it want to run, it is on its way.
    """

    def __init__(self) -> None:
        self._seen: Crowd | None = None
        self._changed = 0.0
        self._starved_since: float | None = None

    def stays(self, crowd: Crowd | None, now: float) -> bool:
        """Whether the crowd has to be ended.

        :param crowd: what there is at this time.
        :param now: seconds, by ``time.monotonic()``.
        """
        seen = self._seen
        if crowd is None or not crowd.starved:
            self._starved_since = None
        elif self._starved_since is None:
            self._starved_since = now
        elif now - self._starved_since >= _STARVED_LIMIT:
            return True
        if crowd is None:
            self._seen = None
            return False
        if seen is None:
            self._seen, self._changed = crowd, now
            return False
        if crowd.tasks > seen.tasks * (1 + _CHANGE):
            self._seen, self._changed = crowd, now
        elif crowd.running < seen.running * (1 - _CHANGE):
            # Its size stays the largest seen: a crowd that swings to and fro does not grow.
            self._seen, self._changed = seen._replace(running=crowd.running), now
        return now - self._changed >= _CROWD_LIMIT


class Resources:
    """Disks and processes of this guest; made when its worker begins.

    What is full by then, as an image that was mounted to be read, is not looked at again. Where
    the guest shares its kernel, as one in a container does, nothing is: others may have taken it.

    :param proc: where proc(5) is.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._shared = bool(os.environ.get(SHARED_KERNEL))
        self._places = [] if self._shared else [p for p in self._mounts() if not _is_full(p)]

    def exhausted(self) -> str | None:
        """What there is no more of, in words; ``None`` if tests can go on here."""
        for place in self._places:
            if _is_full(place):
                return f"the file system of {place} is full"
        crowd = self.crowd()
        return None if crowd is None else crowd.reason

    def crowd(self) -> Crowd | None:
        """How many processes there are, if there is no room for others."""
        if self._shared:
            return None
        try:
            # "0.20 0.18 0.12 1/80 11206": running and all, processes and threads alike
            running, tasks = map(int, self._read("loadavg").split()[3].split("/"))
            allowed = min(int(self._read(f"sys/kernel/{n}")) for n in ("threads-max", "pid_max"))
            starved = self._memory() < _LEAST_MEMORY
            if tasks >= _CROWDED * allowed:
                reason = f"it has {tasks} processes and threads, of {allowed} at most"
                return Crowd(tasks, running, reason, starved)
            if tasks > _MANY_TASKS and starved:
                reason = f"it has {tasks} processes and threads, and no memory left"
                return Crowd(tasks, running, reason, starved)
        except (OSError, ValueError, LookupError, AttributeError):
            pass  # no room for this either, or another kind of kernel
        return None

    def _memory(self) -> float:
        """The part of the memory that is available."""
        found = dict(re.findall(r"^(MemTotal|MemAvailable): +(\d+)", self._read("meminfo"), re.M))
        return int(found["MemAvailable"]) / int(found["MemTotal"])

    def _mounts(self) -> list[str]:
        """Where file systems are that files can be written to."""
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
        return False  # a test has unmounted it, or removed what it is below
    inodes = status.f_files > 0 and status.f_favail < _LEAST_INODES
    return status.f_bavail * status.f_frsize < _LEAST_BYTES or inodes
