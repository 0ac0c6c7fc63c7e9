"""Stamps that show whether a file has changed, without reading it."""

from __future__ import annotations

import os
import stat

__all__ = ["identity", "last_write"]


def identity(path: str) -> tuple[int, ...] | None:
    """A stamp of a file or directory on this machine that differs after any change to it.

    Restoring the modification time does not hide a change, since ``ctime`` cannot be set. For a
    symbolic link, the stamp covers both its target and the link itself.

    :returns: device, inode, size, mtime and ctime (ns); for a link, those of its target and then
        its own. ``None`` if there is no such file.
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
    """A stamp of a file that stays the same when it is copied to another machine or to a cache.

    :returns: its modification time (ns) and size, as a list for JSON. ``None`` if there is no such
        file.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_size]
