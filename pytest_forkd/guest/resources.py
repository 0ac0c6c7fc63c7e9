"""What a test has taken of its guest and not given back, which the tests after it would miss."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from pytest_forkd.guest.restore import SHARED_KERNEL

__all__ = ["Resources"]

#: Bytes and inodes without which next to no test can do.
_LEAST_BYTES = 1024 * 1024
_LEAST_INODES = 64
#: Of the tasks that the kernel allows, the part that is as good as all.
_CROWDED = 0.9
#: Without memory it does not get that far; then so many tasks are a crowd, and so little is none.
_MANY_TASKS = 1000
_LEAST_MEMORY = 0.05


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
        return self.crowd()

    def crowd(self) -> str | None:
        """How many processes there are, in words, if there is no room for others."""
        if self._shared:
            return None
        try:
            # "0.20 0.18 0.12 1/80 11206": running and all, processes and threads alike
            tasks = int(self._read("loadavg").split()[3].partition("/")[2])
            allowed = min(int(self._read(f"sys/kernel/{n}")) for n in ("threads-max", "pid_max"))
            if tasks >= _CROWDED * allowed:
                return f"it has {tasks} processes and threads, of {allowed} at most"
            if tasks > _MANY_TASKS and self._memory() < _LEAST_MEMORY:
                return f"it has {tasks} processes and threads, and no memory left"
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
