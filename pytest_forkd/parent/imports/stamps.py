"""Records the files that a parent has loaded and read, to tell whether any has changed since."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

from pytest_forkd.parent.imports.reads import Reads
from pytest_forkd.parent.imports.searches import Searches
from pytest_forkd.runtime.file_stamps import identity
from pytest_forkd.runtime.proc_stat import read_stat

__all__ = ["Stamps", "process_start"]

#: Nanoseconds by which a file may look older than it is: file times have the kernel's tick.
_TICK = 20_000_000


class Stamps:
    """Stamps of every file that this process has loaded: they show if it is replaced or changed.

    :param started: when this process began to load files, in nanoseconds since the epoch.
    """

    def __init__(self, started: int) -> None:
        self._started = started - _TICK
        self._stamps: dict[str, tuple[int, ...] | None] = {}
        self._searches = Searches()
        self._reads = Reads(identity, _TICK)
        #: A file that may have been written while it was being loaded, so what was read is unknown.
        self.doubtful: str | None = None

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record where modules are searched for, and what they read, inside the block."""
        with self._searches.recorded(), self._reads.recorded():
            yield

    def take(self) -> None:
        """Stamp the files that have been loaded since the last call."""
        for path in (*_loaded_files(), *self._searches.take()):
            if path not in self._stamps:
                stamp = identity(path)
                self._stamps[path] = stamp
                if stamp is None or max(stamp[3:5]) >= self._started:
                    self.doubtful = self.doubtful or path
        self.doubtful = self.doubtful or self._reads.take()

    def changed(self) -> str | None:
        """The first file found to have changed; ``None`` if none has.

        A new file counts if it was looked for and was missing, or if its module would now be found
        instead of another one.
        """
        for path, stamp in self._stamps.items():
            if identity(path) != stamp:
                return path
        return self._searches.changed() or self._reads.changed()

    def __len__(self) -> int:
        return len(self._stamps)


def _loaded_files() -> list[str]:
    """The source or library file of each module, and every file that is mapped into memory."""
    files = {}
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and os.path.isabs(path):
            files[path] = True
    with contextlib.suppress(OSError), open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            _before, slash, path = line.rstrip("\n").partition("/")
            # Not files on disk: memfds, devices and SysV shared memory.
            if slash and not path.startswith(("memfd:", "dev/", "SYSV")):
                files[slash + path] = True
    return [path for path in files if not path.startswith("/proc/")]


def process_start() -> int:
    """When this process was started, or a moment before, in nanoseconds since the epoch."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        ticks = int((read_stat("self") or [])[19])  # field 22 of proc_pid_stat(5)
        age = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ticks * 10**9 // os.sysconf("SC_CLK_TCK")
        return time.time_ns() - age
    return time.time_ns() - time.process_time_ns()
