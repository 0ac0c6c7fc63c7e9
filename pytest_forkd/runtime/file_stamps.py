"""What changes when a file does, told without reading it."""

from __future__ import annotations

import os
import stat

__all__ = ["identity", "last_write"]


def identity(path: str) -> tuple[int, ...] | None:
    """Of a file or directory on this machine: what no change of it leaves as it was.

    A time that was put back and a size that is equal do not deceive it: the time of the last change
    of any kind (``ctime``) cannot be set. A symbolic link is looked at beside what it leads to.

    :returns: device, inode, size, and when it was written and changed in any way (ns); the same of
        a link, after those of what it leads to. ``None`` if there is none.
    """
    try:
        own = os.lstat(path)
        if not stat.S_ISLNK(own.st_mode):
            return own.st_dev, own.st_ino, own.st_size, own.st_mtime_ns, own.st_ctime_ns
        led = os.stat(path)
    except OSError:
        return None
    return (
        *(led.st_dev, led.st_ino, led.st_size, led.st_mtime_ns, led.st_ctime_ns),
        *(own.st_dev, own.st_ino, own.st_size, own.st_mtime_ns, own.st_ctime_ns),
    )


def last_write(path: str) -> list[int] | None:
    """Of a file that may be copied to another machine, or restored from a cache.

    :returns: when it was written (ns), and its size, to be stored as JSON. ``None`` if there is
        none.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_size]
