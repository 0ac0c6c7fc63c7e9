"""Where kept parents are found: one directory for each, below one that belongs to the user.

``pytest-forkd-<uid>/<fingerprint>-<random>/parent`` is the socket that a parent listens on. A
parent removes its directory when it ends. If it was killed, the next process that finds nobody
listening does. See :mod:`pytest_forkd.parent.kept.entries` for how names are checked.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, final

from pytest_forkd.channel.frames import FrameSocket, peer_uid
from pytest_forkd.parent.kept.entries import StoreError, is_entry, open_private, remove_entry
from pytest_forkd.runtime.process_tree import Process

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["KeptParent", "ParentStore", "StoreError", "socket_bases"]

#: ``sun_path`` of unix(7), less the terminating null byte and the name of the socket.
_MAX_DIRECTORY_LENGTH = 107 - len("/parent")
#: Seconds to wait for another run that is just starting a parent.
_LOCK_TIMEOUT = 30.0
#: Seconds after which a directory without a listening socket is taken for abandoned.
_BEING_MADE = 10.0
_ENTRY_LENGTH = len("/pytest-forkd-4294967295/12345678901234567890-12345678")
#: Bytes of the file that says which process a parent is.
_MAX_PROCESS_FILE = 65536


def socket_bases(length: int) -> Iterator[str]:
    """Directories that may hold a socket: ``XDG_RUNTIME_DIR``, the temporary directory, ``/tmp``.

    :param length: length of the path from the base to the socket's directory. A base is left out
        if the whole path would be too long for a socket's address.
    """
    try:
        temporary = tempfile.gettempdir()
    except OSError:
        temporary = ""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), temporary, "/tmp"):  # noqa: S108
        if base and len(base) + length <= _MAX_DIRECTORY_LENGTH:
            yield base


class KeptParent:
    """The directory of one kept parent, held open until :meth:`close`.

    :param store: the store that holds it; must be open.
    :param name: its name in the store.
    :raises OSError: if it is not a directory of this user.
    """

    def __init__(self, store: ParentStore, name: str) -> None:
        self.name = name
        self.path = store.directory / name
        self._folder = os.dup(store.folder)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = -1
        try:
            self._fd = os.open(name, flags, dir_fd=self._folder)
        except OSError:
            self.close()
            raise
        if os.fstat(self._fd).st_uid != os.getuid():
            self.close()
            raise PermissionError(f"{self.path} belongs to somebody else")

    @property
    def socket_path(self) -> str:
        """Path of the socket: through the open directory's descriptor if /proc is there."""
        by_descriptor = f"/proc/self/fd/{self._fd}"
        if os.path.isdir(by_descriptor):
            return f"{by_descriptor}/parent"
        return str(self.path / "parent")

    def connect(self) -> FrameSocket | None:
        """A connection to the parent; ``None`` if nobody listens, or its backlog is full."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)  # else connect() waits while the backlog of a hung parent is full
        try:
            sock.connect(self.socket_path)
        except OSError as exc:
            sock.close()
            if isinstance(exc, (ConnectionRefusedError, FileNotFoundError)):
                self._remove_abandoned()
            return None
        if peer_uid(sock) not in (None, os.getuid()):
            sock.close()
            return None
        return FrameSocket(sock)

    def _remove_abandoned(self) -> None:
        """Remove the directory of a parent that was killed, but not one that is just being made."""
        with contextlib.suppress(OSError):
            if time.time() - os.fstat(self._fd).st_mtime > _BEING_MADE:
                self.remove()

    def remove(self) -> None:
        """Remove the entry and its known files."""
        found = os.fstat(self._fd)
        remove_entry(self._folder, self.name, (found.st_dev, found.st_ino))

    def write_process(self, process: Process, project: str) -> None:
        """Record which process the parent is, and which project it is kept for.

        :raises OSError: if the file cannot be written.
        """
        with self.create("process") as file:
            file.write(json.dumps({**process.to_json(), "project": project}).encode("ascii"))

    def create(self, name: str) -> BinaryIO:
        """Create a file in the entry; the caller writes to it and closes it.

        :raises OSError: if it cannot be made.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return open(os.open(name, flags, 0o600, dir_fd=self._fd), "wb")

    def read_log(self) -> str:
        """What the parent has printed; may be empty."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with contextlib.suppress(OSError), open(os.open("log", flags, dir_fd=self._fd), "rb") as f:
            return f.read().decode("utf-8", "replace")
        return ""

    def exists(self) -> bool:
        """Whether runs can find the parent."""
        with contextlib.suppress(OSError):
            os.stat("parent", dir_fd=self._fd, follow_symlinks=False)
            return True
        return False

    def _read_process(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open("process", flags, dir_fd=self._fd), "rb") as file:
                found = json.loads(file.read(_MAX_PROCESS_FILE))
            if isinstance(found, dict):
                return found
        return {}

    @property
    def process(self) -> Process | None:
        """The parent's process, if it is known and still running."""
        process = Process.from_json(self._read_process())
        return process if process is not None and process.is_running() else None

    @property
    def project(self) -> str:
        """The suite's root directory and ini file; empty if that is not known."""
        return str(self._read_process().get("project", ""))

    @property
    def state(self) -> str:
        """``ready``, ``learning``, or ``preloading``."""
        for state in ("ready", "learning"):
            with contextlib.suppress(OSError):
                os.stat(state, dir_fd=self._fd, follow_symlinks=False)
                return state
        return "preloading"

    @property
    def last_use(self) -> int:
        """When it was used last, in nanoseconds since the epoch; 0 if that is not known."""
        with contextlib.suppress(OSError):
            return os.stat("process", dir_fd=self._fd, follow_symlinks=False).st_mtime_ns
        return 0

    def close(self) -> None:
        """Let go of the directory; safe to call twice."""
        for fd in (self._fd, self._folder):
            if fd >= 0:
                os.close(fd)
        self._fd = self._folder = -1


@final
class ParentStore:
    """The kept parents of this user.

    :ivar directory: where they are, with mode 0700; made by :meth:`prepare`.
    :ivar folder: its descriptor once it is open; -1 before.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.folder = -1

    @classmethod
    def find(cls) -> ParentStore:
        """The store, in the first of :func:`socket_bases` that is a directory.

        :raises StoreError: if there is none.
        """
        for base in socket_bases(_ENTRY_LENGTH):
            if os.path.isdir(base):
                return cls(Path(base) / f"pytest-forkd-{os.getuid()}")
        raise StoreError("there is no directory for its socket (XDG_RUNTIME_DIR, TMPDIR)")

    def prepare(self) -> None:
        """Open the directory; make it if need be.

        :raises StoreError: if others own or can access it, or if it cannot be made.
        """
        try:
            with contextlib.suppress(FileExistsError):
                self.directory.mkdir(mode=0o700)
        except OSError as exc:
            raise StoreError(f"cannot make {self.directory}: {exc.strerror}") from exc
        if not self.open():
            raise StoreError(f"{self.directory} has just been removed")

    def open(self) -> bool:
        """Open the directory, if there is one.

        :returns: whether there is.
        :raises StoreError: if it is not this user's alone.
        """
        if self.folder < 0:
            try:
                self.folder = open_private(self.directory)
            except FileNotFoundError:
                return False
        return True

    def close(self) -> None:
        """Let go of the directory; safe to call twice."""
        if self.folder >= 0:
            os.close(self.folder)
            self.folder = -1

    def __enter__(self) -> ParentStore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def lock(self) -> BaseFileLock:
        """A lock to hold while a parent is made, so that two runs do not make the same one.

        Entering it raises :exc:`TimeoutError` if other runs hold it for too long.
        """
        from filelock import FileLock  # slow to import, and most runs find a parent without it

        return FileLock(self.directory / "lock", timeout=_LOCK_TIMEOUT)

    def make_entry(self, fingerprint: str) -> KeptParent:
        """A new, empty directory for a parent.

        :raises OSError: if it cannot be made.
        """
        name = f"{fingerprint}-{secrets.token_hex(4)}"
        os.mkdir(name, 0o700, dir_fd=self.folder)
        return KeptParent(self, name)

    def entries(self, fingerprint: str = "") -> list[KeptParent]:
        """The entries of parents with this fingerprint, or of all; most recently used first.

        The caller has to close them.

        :raises StoreError: if the directory is not this user's alone.
        """
        found = []
        if self.open():
            prefix = f"{fingerprint}-" if fingerprint else ""
            for name in sorted(os.listdir(self.folder)):
                if is_entry(name) and name.startswith(prefix):
                    with contextlib.suppress(OSError):
                        found.append(KeptParent(self, name))
        return sorted(found, key=lambda entry: -entry.last_use)

    def connections(self) -> Iterator[FrameSocket]:
        """A connection to each kept parent.

        :raises StoreError: if the directory is not this user's alone.
        """
        with ParentStore(self.directory) as store:
            for entry in store.entries():
                with contextlib.closing(entry):
                    connection = entry.connect()
                if connection is not None:
                    yield connection
