"""Where kept parents are found: one directory for each, below one that belongs to the user.

``pytest-forkd-<uid>/<fingerprint>-<random>/parent`` is the socket that a parent listens on. A
parent removes its directory when it ends; what is left of one that was killed is removed by whoever
finds nobody listening.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_forkd.channel.frames import FrameSocket, peer_uid

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["Store", "StoreError", "socket_bases"]

#: ``sun_path`` of unix(7), less the terminating null byte and the name of the socket.
_MAX_DIRECTORY_LENGTH = 107 - len("/parent")
#: Seconds to wait for another run that is just starting a parent.
_LOCK_TIMEOUT = 30.0
#: Seconds for a parent's directory to get its socket.
_BEING_MADE = 10.0
_ENTRY_LENGTH = len("/pytest-forkd-4294967295/12345678901234567890-12345678")


class StoreError(Exception):
    """Parents cannot be kept here; the message says why."""


def socket_bases(length: int) -> Iterator[str]:
    """Where a socket may be: ``XDG_RUNTIME_DIR``, where temporary files go, ``/tmp``.

    :param length: of the path from there to the socket's directory; a base that leaves no room for
        it in a socket's address is left out.
    """
    try:
        temporary = tempfile.gettempdir()
    except OSError:
        temporary = ""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), temporary, "/tmp"):  # noqa: S108
        if base and len(base) + length <= _MAX_DIRECTORY_LENGTH:
            yield base


class Store:
    """The kept parents of this user.

    :ivar directory: mode 0700; made by :meth:`prepare`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def find(cls) -> Store:
        """The store, in ``XDG_RUNTIME_DIR`` if that is set, else where temporary files go.

        :raises StoreError: if neither can hold one.
        """
        for base in socket_bases(_ENTRY_LENGTH):
            if os.path.isdir(base):
                return cls(Path(base) / f"pytest-forkd-{os.getuid()}")
        raise StoreError("there is no directory for its socket (XDG_RUNTIME_DIR, TMPDIR)")

    def prepare(self) -> None:
        """Make the directory, or make sure that it is this user's alone.

        :raises StoreError: if it is not, or cannot be made.
        """
        try:
            with contextlib.suppress(FileExistsError):
                self.directory.mkdir(mode=0o700)
            found = self.directory.lstat()
        except OSError as exc:
            raise StoreError(f"cannot make {self.directory}: {exc.strerror}") from exc
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise StoreError(f"{self.directory} belongs to somebody else")
        if found.st_mode & 0o077:
            raise StoreError(f"others may look into {self.directory}; its mode is to be 0700")

    def lock(self) -> BaseFileLock:
        """To be held while a parent is made, so that there is one of each.

        It raises :exc:`OSError` (a :exc:`TimeoutError`) when others take too long.
        """
        from filelock import FileLock  # importing it takes a while; most runs find a parent

        return FileLock(self.directory / "lock", timeout=_LOCK_TIMEOUT)

    def make_entry(self, fingerprint: str) -> Path:
        """A new, empty directory for a parent.

        :raises OSError: if it cannot be made.
        """
        return Path(tempfile.mkdtemp(prefix=f"{fingerprint}-", dir=self.directory))

    def connect(self, fingerprint: str) -> FrameSocket | None:
        """A connection to a parent with this fingerprint; ``None`` if there is none."""
        for entry in self._entries(f"{fingerprint}-"):
            connection = self._connect(entry)
            if connection is not None:
                return connection
        return None

    def connections(self) -> Iterator[FrameSocket]:
        """A connection to each kept parent."""
        for entry in self._entries(""):
            connection = self._connect(entry)
            if connection is not None:
                yield connection

    def _entries(self, prefix: str) -> list[Path]:
        try:
            names = sorted(os.listdir(self.directory))
        except OSError:
            return []
        return [self.directory / name for name in names if name.startswith(prefix) and "-" in name]

    @staticmethod
    def _connect(entry: Path) -> FrameSocket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(entry / "parent"))
        except OSError as exc:
            sock.close()
            if isinstance(exc, (ConnectionRefusedError, FileNotFoundError)):
                _remove_abandoned(entry)
            return None
        if peer_uid(sock) not in (None, os.getuid()):
            sock.close()
            return None
        return FrameSocket(sock)


def _remove_abandoned(entry: Path) -> None:
    """Remove what a parent that was killed has left, but not what is just being made."""
    with contextlib.suppress(OSError):
        if time.time() - entry.stat().st_mtime > _BEING_MADE:
            shutil.rmtree(entry, ignore_errors=True)
