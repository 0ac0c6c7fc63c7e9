"""Writes to a tree through descriptors of its folders only. Uses only the standard library."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from pytest_forkd.sync.tree import TEMPORARY

__all__ = ["ApplyError", "Folders"]

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class ApplyError(Exception):
    """A difference cannot be applied; the message says why. Part of it may have been applied."""


class Folders:
    """The tree, written to through descriptors of its folders only.

    The folder used last stays open, since the next file is mostly in the same one.
    """

    def __init__(self, root: str) -> None:
        try:
            os.makedirs(root, exist_ok=True)
            self._root = os.open(root, _FOLDER_FLAGS & ~os.O_NOFOLLOW)
        except OSError as exc:
            raise ApplyError(f"the project's folder {root} cannot be made: {exc.strerror}") from exc
        self._parts: list[bytes] = []
        self._folder = self._root
        self._temporary: bytes | None = None
        self._target = b""
        #: Stems of the Python files that changed in the open folder.
        self._stems: set[bytes] = set()
        #: Folders from which something was deleted.
        self._thinned: set[tuple[bytes, ...]] = set()

    def close(self) -> None:
        if self._root < 0:
            return
        self.abandon()
        with contextlib.suppress(OSError):
            self._leave()
        os.close(self._root)
        self._root = self._folder = -1

    def delete(self, parts: list[bytes]) -> int:
        """Delete a file or link; returns how many there were."""
        *parents, name = parts
        try:
            self._enter(parents, make=False)
            os.unlink(name, dir_fd=self._folder)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return 0
            if not _is_folder(self._folder, name):
                raise
            _remove_tree(self._folder, name)
        self._changed(name)
        self._thinned.add(tuple(parents))
        return 1

    def begin(self, parts: list[bytes]) -> int:
        """Begin to write a file; returns the descriptor of a temporary file next to it."""
        self._prepare(parts)
        assert self._temporary is not None
        return os.open(self._temporary, _NEW_FILE_FLAGS, 0o600, dir_fd=self._folder)

    def commit(self, fd: int, mode: int, mtime: int) -> None:
        """Put the temporary file in its place."""
        assert self._temporary is not None
        os.fchmod(fd, mode)
        if self._same_second(mtime):
            mtime += 10**9
        with contextlib.suppress(OverflowError):
            os.utime(fd, ns=(mtime, mtime))
        self._put()

    def link(self, parts: list[bytes], target: bytes) -> None:
        """Make a link."""
        self._prepare(parts)
        assert self._temporary is not None
        try:
            os.symlink(target, self._temporary, dir_fd=self._folder)
            self._put()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Remove the temporary file, if there is one."""
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder)
            self._temporary = None

    def settle(self) -> None:
        """Finish after the last change: remove stale bytecode, and folders left empty."""
        self._leave()
        for parents in sorted(self._thinned, key=len, reverse=True):
            for depth in range(len(parents), 0, -1):
                try:
                    self._enter(list(parents[: depth - 1]), make=False)
                    os.rmdir(parents[depth - 1], dir_fd=self._folder)
                except OSError:
                    break  # it is not empty, or is gone
        self._leave()

    def _prepare(self, parts: list[bytes]) -> None:
        *parents, self._target = parts
        self._enter(parents, make=True)
        self._temporary = TEMPORARY + os.urandom(8).hex().encode()

    def _put(self) -> None:
        assert self._temporary is not None
        self._changed(self._target)
        if _is_folder(self._folder, self._target):
            _remove_tree(self._folder, self._target)
        os.rename(self._temporary, self._target, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._temporary = None

    def _same_second(self, mtime: int) -> bool:
        """Whether the existing file has the same time, so that its bytecode would seem to be ours.

        Python compares only the source's size, and its time in seconds. Bytecode next to the source
        is removed anyway, but there may be more elsewhere.
        """
        try:
            info = os.lstat(self._target, dir_fd=self._folder)
        except OSError:
            return False
        return stat.S_ISREG(info.st_mode) and info.st_mtime_ns // 10**9 == mtime // 10**9

    def _changed(self, name: bytes) -> None:
        if name.endswith(b".py"):
            self._stems.add(name.partition(b".")[0])

    def _enter(self, parts: list[bytes], *, make: bool) -> None:
        if parts == self._parts:
            return
        self._leave()
        fd = self._root
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=fd)
                below = os.open(part, _FOLDER_FLAGS, dir_fd=fd)
                if fd != self._root:
                    os.close(fd)
                fd = below
        except OSError:
            if fd != self._root:
                os.close(fd)
            raise
        self._parts, self._folder = parts, fd

    def _leave(self) -> None:
        """Close the open folder, and remove the bytecode of what has changed in it."""
        stems, self._stems = self._stems, set()
        try:
            if stems:
                _remove_bytecode(self._folder, stems)
        finally:
            if self._folder != self._root:
                os.close(self._folder)
            self._parts, self._folder = [], self._root


def _remove_bytecode(folder: int, stems: set[bytes]) -> None:
    try:
        fd = os.open(b"__pycache__", _FOLDER_FLAGS, dir_fd=folder)
    except OSError:
        return
    try:
        for text in os.listdir(fd):
            name = os.fsencode(text)
            # NAME.cpython-311.pyc, NAME.cpython-311-pytest-8.0.0.pyc
            if name.endswith(b".pyc") and name.partition(b".")[0] in stems:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=fd)
    finally:
        os.close(fd)
    with contextlib.suppress(OSError):
        os.rmdir(b"__pycache__", dir_fd=folder)


def _is_folder(folder: int, name: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode)
    except OSError:
        return False


def _remove_tree(folder: int, name: bytes) -> None:
    """Remove a folder and all in it; links are removed, not followed."""
    fd = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
    try:
        for text in os.listdir(fd):
            inner = os.fsencode(text)
            if _is_folder(fd, inner):
                _remove_tree(fd, inner)
            else:
                os.unlink(inner, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=folder)
