"""Kernels, images and snapshots on disk: in the user's cache directory, under their fingerprint.

``<cache>/pytest-forkd/<kind>/<name>/`` is complete, or does not exist: it is written under another
name and renamed, under a lock for its name. Users of an entry hold a shared lock on its directory
(flock(2)); only entries without such locks are removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pytest_forkd.backends.base import BackendError
from pytest_forkd.runtime.user_directories import user_cache

__all__ = ["KINDS", "Artifact", "ArtifactStore", "stamps"]

KINDS = ("kernels", "images", "snapshots")
#: Seconds to wait for another run that is building the same entry, perhaps from scratch.
_LOCK_TIMEOUT = 600.0
_META = "meta.json"
_USED = "used"


@dataclass(frozen=True)
class Artifact:
    """A kernel, image or snapshot that was built.

    :ivar kind: one of :data:`KINDS`.
    :ivar name: its fingerprint.
    :ivar path: its directory.
    :ivar meta: its builder's notes.
    """

    kind: str
    name: str
    path: Path
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes that it takes on disk; its files are sparse."""
        return sum(
            os.lstat(os.path.join(base, name)).st_blocks * 512
            for base, _folders, names in os.walk(self.path)
            for name in names
        )

    @property
    def used(self) -> float:
        """When it was used last, in seconds since the epoch."""
        with contextlib.suppress(OSError):
            return os.stat(self.path / _USED).st_mtime
        return 0.0

    def check(self) -> None:
        """Make sure that its files were not changed: a snapshot relies on its image and memory.

        :raises BackendError: if they were changed.
        """
        for name, stamp in self.meta.get("stamps", {}).items():
            try:
                if _stamp(self.path / name) == stamp:
                    continue
                what = "has been changed since it was built"
            except OSError as exc:
                what = f"cannot be read: {exc.strerror}"
            raise BackendError(
                f"{self.path / name} {what}.\n"
                f"To have the {self.kind.removesuffix('s')} built anew: "
                f"pytest-forkd image rm {self.name}"
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[Path]:
        """Protect it from being removed while the context lasts.

        :raises BackendError: if it has just been removed.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise BackendError(f"{self.path} has just been removed; run again.") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            # It may have been removed, and perhaps rebuilt, before it was locked.
            if not _same(fd, self.path):
                raise BackendError(f"{self.path} has just been removed; run again.")
            with contextlib.suppress(OSError):
                os.utime(self.path / _USED)
            yield self.path
        finally:
            os.close(fd)


class ArtifactStore:
    """All entries.

    :param directory: made when the first entry is built; only its owner can access it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def find(cls) -> ArtifactStore:
        """The store in the user's cache directory: ``XDG_CACHE_HOME``, else ``~/.cache``."""
        return cls(user_cache())

    def get(self, kind: str, name: str) -> Artifact | None:
        """The entry with a name; ``None`` if it was not built."""
        path = self.directory / kind / name
        try:
            meta = json.loads((path / _META).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return Artifact(kind, name, path, meta)

    def build(self, kind: str, name: str, builder: Callable[[Path], dict[str, Any]]) -> Artifact:
        """The entry with a name; if there is none, ``builder`` builds it now.

        :param builder: fills an empty directory, and returns notes about it.
        :raises BackendError: if it cannot be built or stored; nothing is left then.
        """
        found = self.get(kind, name)
        if found is not None:
            return found
        folder = self.directory / kind
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            with FileLock(folder / f"{name}.lock", timeout=_LOCK_TIMEOUT):
                return self.get(kind, name) or self._build(kind, name, builder)
        except Timeout:
            raise BackendError(
                f"another run has been building {folder / name} for {_LOCK_TIMEOUT:g} seconds.\n"
                "Run again when it is done, or end it."
            ) from None
        except OSError as exc:
            raise BackendError(_explain(exc, folder)) from exc

    def _build(self, kind: str, name: str, builder: Callable[[Path], dict[str, Any]]) -> Artifact:
        path = self.directory / kind / name
        beside = self.directory / kind / f"{name}.partial"
        _remove(beside)  # left by a killed process, since we hold the lock
        _remove(path)  # unusable without its notes
        beside.mkdir(mode=0o700)
        try:
            meta = {**builder(beside), "built": time.time()}
            (beside / _USED).touch()
            (beside / _META).write_text(json.dumps(meta, indent=1), "utf-8")
            beside.rename(path)
        except BaseException:
            _remove(beside)
            raise
        return Artifact(kind, name, path, meta)

    def entries(self) -> list[Artifact]:
        """All entries, by kind, most recently used first."""
        found = []
        for kind in KINDS:
            with contextlib.suppress(OSError):
                names = os.listdir(self.directory / kind)
                entries = [entry for name in names if (entry := self.get(kind, name))]
                found += sorted(entries, key=lambda entry: -entry.used)
        return found

    def remove(self, entry: Artifact) -> bool:
        """Remove an entry; for an image, also the snapshots that need it.

        :returns: false if it is in use.
        :raises OSError: if it cannot be removed.
        """
        if entry.kind == "images":
            for other in self.entries():
                if other.meta.get("image") == entry.name and not self.remove(other):
                    return False
        trash = entry.path.with_name(f"{entry.name}.trash-{os.getpid()}")
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(fd, entry.path):
                entry.path.rename(trash)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        _remove(trash)
        return True

    def sweep(self) -> None:
        """Remove what killed processes have left."""
        for kind in KINDS:
            folder = self.directory / kind
            with contextlib.suppress(OSError):
                for name in os.listdir(folder):
                    if ".trash-" in name:
                        _remove(folder / name)
                    elif name.endswith(".partial"):
                        self._sweep_partial(folder, name)

    def _sweep_partial(self, folder: Path, name: str) -> None:
        lock = FileLock(folder / f"{name.removesuffix('.partial')}.lock", timeout=0)
        with contextlib.suppress(Timeout, OSError), lock:
            _remove(folder / name)


def stamps(*paths: Path) -> dict[str, list[int]]:
    """Stamps of files for :meth:`Artifact.check`; a builder returns them as its note ``stamps``.

    :param paths: files of the entry that must not change once it is built.
    """
    return {path.name: _stamp(path) for path in paths}


def _stamp(path: Path) -> list[int]:
    """Size and mtime of a file; in whole seconds, as archives of the cache may keep no more."""
    info = path.stat()
    return [info.st_size, int(info.st_mtime)]


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


def _remove(path: Path) -> None:
    """Remove a directory, if it exists; its files may be read-only.

    Links, and directories of other users, are left alone: ``XDG_CACHE_HOME`` may be anywhere.
    """
    try:
        found = os.lstat(path)
    except OSError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        return
    with contextlib.suppress(OSError):
        for base, _folders, _names in os.walk(path):
            os.chmod(base, 0o700)
    shutil.rmtree(path, ignore_errors=True)


def _explain(exc: OSError, folder: Path) -> str:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"there is no space left for what is built in {folder}: {exc.strerror}.\n"
            "Make room ('pytest-forkd image prune'), or set XDG_CACHE_HOME to a larger disk."
        )
    return (
        f"{exc.filename or folder}: {exc.strerror or exc}.\nXDG_CACHE_HOME says where it is kept."
    )
