"""A kept parent's directory, which is always opened, read and removed by descriptor, not by path.

``<fingerprint>-<random>/`` holds the socket ``parent``, the parent's output (``log``), its process
(``process``), and a file that tells whether it waits for runs (``ready``) or imports something in
its idle time (``learning``). Other users may write to the place where these directories are, so
names are not trusted: only this user's directories are opened, and only known files are removed.

Only the standard library: the parent uses this, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator

__all__ = ["Place", "StoreError", "is_entry", "open_private", "remove_directory", "remove_entry"]

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENTRY = re.compile(r"[0-9a-f]{20}-[0-9a-z_]{8}")
_IS_FILE: Callable[[int], bool] = stat.S_ISREG
#: The files that an entry may hold, and a check of each one's type.
_FILES = {
    "parent": stat.S_ISSOCK,
    "log": _IS_FILE,
    "process": _IS_FILE,
    "ready": _IS_FILE,
    "learning": _IS_FILE,
}


class StoreError(Exception):
    """Parents cannot be kept here; the message says why."""


def open_private(path: str | os.PathLike[str]) -> int:
    """Open a directory that only this user can access.

    :returns: a descriptor, which the caller has to close.
    :raises FileNotFoundError: if it does not exist.
    :raises StoreError: if it is a link or not a directory, or if others own it or can access it.
    """
    try:
        fd = os.open(path, _OPEN_DIRECTORY)
    except FileNotFoundError:
        raise
    except OSError as exc:
        with contextlib.suppress(OSError):
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise StoreError(f"{path} is no directory") from exc
        raise StoreError(f"cannot open {path}: {exc.strerror}") from exc
    try:
        found = os.fstat(fd)
        if found.st_uid != os.getuid():
            raise StoreError(f"{path} belongs to somebody else")
        if found.st_mode & 0o077:
            raise StoreError(f"others may look into {path}; its mode is to be 0700")
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_entry(name: str) -> bool:
    """Whether a name has the form of an entry's name."""
    return _ENTRY.fullmatch(name) is not None


def remove_entry(folder: int, name: str, identity: tuple[int, int] | None = None) -> bool:
    """Remove an entry and its known files; an entry that holds anything else is left alone.

    :param folder: an open directory that only this user can access.
    :param identity: the device and inode that the entry must have.
    :returns: whether it was removed.
    """
    if not is_entry(name):
        return False
    with contextlib.suppress(OSError):
        fd = os.open(name, _OPEN_DIRECTORY, dir_fd=folder)
        try:
            if not _empty(fd, _FILES, identity):
                return False
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=folder)
        return True
    return False


def remove_directory(path: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Remove a directory of this user, unless it holds files with other names than these."""
    with contextlib.suppress(OSError):
        fd = os.open(path, _OPEN_DIRECTORY)
        try:
            if not _empty(fd, dict.fromkeys(names, _is_no_directory), None):
                return
        finally:
            os.close(fd)
        os.rmdir(path)


def _is_no_directory(mode: int) -> bool:
    return not stat.S_ISDIR(mode)


def _empty(
    fd: int, known: dict[str, Callable[[int], bool]], identity: tuple[int, int] | None
) -> bool:
    """Remove the known files of a directory of this user; remove nothing if it holds others."""
    me, found = os.getuid(), os.fstat(fd)
    if found.st_uid != me or identity not in (None, (found.st_dev, found.st_ino)):
        return False
    names = os.listdir(fd)
    for name in names:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if name not in known or not known[name](status.st_mode) or status.st_uid != me:
            return False
    for name in names:
        os.unlink(name, dir_fd=fd)
    return True


class Place:
    """The parent's own entry, as the parent sees it.

    :param path: its directory, which exists.
    :raises OSError: if it does not.
    """

    def __init__(self, path: str) -> None:
        self._folder, self._name = os.path.split(path)
        found = os.lstat(path)
        self._identity = found.st_dev, found.st_ino

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the entry; :exc:`OSError` if it does not exist any more."""
        try:
            folder = open_private(self._folder)
        except StoreError as exc:
            raise OSError(str(exc)) from exc
        try:
            fd = os.open(self._name, _OPEN_DIRECTORY, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != self._identity:
                raise FileNotFoundError(self._name)
            yield fd
        finally:
            os.close(fd)

    def exists(self) -> bool:
        """Whether runs can find this parent."""
        with contextlib.suppress(OSError), self._opened() as fd:
            os.stat("parent", dir_fd=fd, follow_symlinks=False)
            return True
        return False

    def mark(self, state: str) -> None:
        """Tell runs how long this parent may take to answer.

        :param state: ``ready`` answers at once, ``learning`` may take a while, and ``preloading``
            takes as long as a new parent would.
        """
        with contextlib.suppress(OSError), self._opened() as fd:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            if state != "preloading":
                os.close(os.open(state, flags, 0o600, dir_fd=fd))
            for other in {"ready", "learning"} - {state}:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(other, dir_fd=fd)

    def used(self) -> None:
        """Record the time of use: the least recently used parent is the first to end."""
        with contextlib.suppress(OSError), self._opened() as fd:
            os.utime("process", dir_fd=fd, follow_symlinks=False)

    def used_later(self) -> int:
        """How many other parents of this user were used after this one."""
        try:
            with self._opened() as fd:
                mine = os.stat("process", dir_fd=fd, follow_symlinks=False).st_mtime_ns
            folder = open_private(self._folder)
        except (OSError, StoreError):
            return 0
        later = 0
        try:
            for name in os.listdir(folder):
                if is_entry(name) and name != self._name:
                    with contextlib.suppress(OSError):
                        path = f"{name}/process"
                        found = os.stat(path, dir_fd=folder, follow_symlinks=False)
                        later += found.st_mtime_ns > mine
        finally:
            os.close(folder)
        return later

    def withdraw(self) -> None:
        """Let no further run find this parent."""
        with contextlib.suppress(OSError, StoreError):
            folder = open_private(self._folder)
            try:
                remove_entry(folder, self._name, self._identity)
            finally:
                os.close(folder)
