"""The files that a parent has loaded, to tell whether any of them has changed since."""

from __future__ import annotations

import contextlib
import os
import sys

__all__ = ["Stamps"]


class Stamps:
    """Time and size of every file that this process has loaded.

    :param started: when this process began to load files, in nanoseconds since the epoch.
    """

    def __init__(self, started: int) -> None:
        self._started = started
        self._stamps: dict[str, tuple[int, int] | None] = {}
        #: A file that was written while it was being loaded, perhaps: nobody knows what was read.
        self.doubtful: str | None = None

    def take(self) -> None:
        """Note the files that have been loaded since the last call."""
        for path in _loaded_files():
            if path not in self._stamps:
                stamp = _stamp(path)
                self._stamps[path] = stamp
                if stamp is None or stamp[0] >= self._started:
                    self.doubtful = self.doubtful or path

    def changed(self) -> str | None:
        """The first file found that is not what it was; ``None`` if all are."""
        for path, stamp in self._stamps.items():
            if _stamp(path) != stamp:
                return path
        return None

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
            # memfd's and shared memory are listed like files, but nobody can change them.
            if slash and not path.startswith(("memfd:", "dev/", "SYSV")):
                files[slash + path] = True
    return [path for path in files if not path.startswith("/proc/")]


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size
