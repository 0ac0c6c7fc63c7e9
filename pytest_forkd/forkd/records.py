"""Records on disk of what runs have made at forkd daemons, so that it is deleted in any case.

A daemon keeps a sandbox until it is deleted, so each run records what it makes: a branch before it
asks for it, a sandbox before it uses it. The file is removed when everything is deleted. A file
that remains lists what a run has left behind. Nothing that is not on record is ever deleted.

The directory is ``XDG_STATE_HOME/pytest-forkd/forkd`` (``~/.local/state`` by default). The files
hold paths of token files, never a token.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pytest_forkd.forkd.answers import ID, TAG
from pytest_forkd.forkd.errors import ForkdError
from pytest_forkd.runtime.proc_stat import read_stat
from pytest_forkd.runtime.user_directories import user_state

__all__ = ["Records", "Run", "is_run_tag", "make_run_tag", "process_identity", "state_directory"]

#: Seconds to wait for others that read or write records.
_LOCK_TIMEOUT = 10.0
_SUFFIX = ".json"
_RUN_TAG = re.compile(r"pytest-forkd-run-[0-9a-f]{20}")


@dataclass
class Run:
    """What one run has made.

    :ivar host: the machine that it runs on.
    :ivar process: its process there, see :func:`process_identity`.
    :ivar pid: the pid of that process, to show to the user.
    :ivar started: when it started, in seconds since 1970.
    :ivar cwd: the directory that pytest was started in, to show to the user.
    :ivar token_file: the file with the token, if it is in a file.
    :ivar ca: the file with the certificates to trust, if there is one.
    :ivar sandboxes: URLs of daemons and ids of sandboxes.
    :ivar branches: URLs of daemons and tags of branches.
    """

    host: str
    process: str
    pid: int
    started: float
    cwd: str = ""
    token_file: str | None = None
    ca: str | None = None
    sandboxes: list[tuple[str, str]] = field(default_factory=list)
    branches: list[tuple[str, str]] = field(default_factory=list)
    path: Path | None = field(default=None, compare=False)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to delete."""
        return not self.sandboxes and not self.branches

    def is_local(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == _host()

    def is_running(self) -> bool:
        """Whether its process is alive, as far as that can be found out from here."""
        return self.is_local() and process_identity(self.pid) == self.process

    def to_json(self) -> dict[str, Any]:
        """To be stored."""
        stored = asdict(self)
        del stored["path"]
        return stored

    @classmethod
    def from_json(cls, stored: object, path: Path) -> Run:
        """The inverse of :meth:`to_json`.

        :raises ValueError: if ``stored`` is anything else.
        """
        if not isinstance(stored, dict):
            raise ValueError("no JSON object")
        try:
            run = cls(
                host=_text(stored["host"]),
                process=_text(stored["process"]),
                pid=int(stored["pid"]),
                started=float(stored["started"]),
                cwd=_text(stored["cwd"]),
                token_file=_optional_text(stored["token_file"]),
                ca=_optional_text(stored["ca"]),
                sandboxes=[(_text(url), _text(name)) for url, name in stored["sandboxes"]],
                branches=[(_text(url), _text(tag)) for url, tag in stored["branches"]],
                path=path,
            )
        except (KeyError, TypeError) as exc:
            raise ValueError(f"no record of a run: {exc!r}") from exc
        if not all(ID.fullmatch(name) for _url, name in run.sandboxes):
            raise ValueError("no id of a sandbox")
        if not all(TAG.fullmatch(tag) for _url, tag in run.branches):
            raise ValueError("no tag of a branch")
        return run


class Records:
    """The records of this user; may be used from several threads and processes.

    :param directory: their directory; the one in the user's state directory by default.
    :raises ForkdError: if it cannot be used.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory if directory is not None else state_directory()
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise ForkdError(
                f"cannot make {self.directory}: {exc.strerror}. It is to hold the list of what is "
                "to be deleted from forkd daemons; set XDG_STATE_HOME to another directory."
            ) from exc
        self._lock = FileLock(self.directory / "lock", timeout=_LOCK_TIMEOUT)

    def begin(self, token_file: str | None = None, ca: str | None = None) -> Run:
        """Begin a record for this process; it is written with its first entry.

        :param token_file: the file with the token, if it is in a file.
        :param ca: the file with the certificates to trust.
        """
        return Run(
            host=_host(),
            process=process_identity(os.getpid()) or "",
            pid=os.getpid(),
            started=time.time(),
            cwd=os.getcwd(),
            token_file=None if token_file is None else os.path.abspath(token_file),
            ca=None if ca is None else os.path.abspath(ca),
            path=self.directory / f"{int(time.time())}-{os.getpid()}-{uuid.uuid4().hex[:8]}.json",
        )

    def add(
        self,
        run: Run,
        *,
        sandboxes: list[tuple[str, str]] | None = None,
        branches: list[tuple[str, str]] | None = None,
    ) -> None:
        """Record what the run has made, or is about to make.

        :raises ForkdError: if that fails; what was made must not be used then.
        """
        with self._locked():
            run.sandboxes += [each for each in sandboxes or () if each not in run.sandboxes]
            run.branches += [each for each in branches or () if each not in run.branches]
            self._write(run)

    def remove(
        self,
        run: Run,
        *,
        sandboxes: list[tuple[str, str]] | None = None,
        branches: list[tuple[str, str]] | None = None,
    ) -> None:
        """Remove what has been deleted from the record; the last entry removes the file.

        :raises ForkdError: if it cannot be written.
        """
        with self._locked():
            run.sandboxes[:] = [each for each in run.sandboxes if each not in (sandboxes or ())]
            run.branches[:] = [each for each in run.branches if each not in (branches or ())]
            self._write(run)

    def read(self, path: Path) -> Run | None:
        """The record in a file; ``None`` if there is none (any more).

        :raises ForkdError: if it is damaged.
        """
        with self._locked():
            return self._read(path)

    def all(self) -> list[Run]:
        """All records, the oldest first; damaged ones are left out."""
        found = []
        with self._locked():
            for path in sorted(self.directory.glob(f"*{_SUFFIX}")):
                with contextlib.suppress(ForkdError):
                    run = self._read(path)
                    if run is not None:
                        found.append(run)
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._lock.acquire()
        except Timeout:
            raise ForkdError(
                f"{self.directory}/lock is held by another process for {_LOCK_TIMEOUT:g} seconds; "
                "is it stuck?"
            ) from None
        except OSError as exc:
            raise ForkdError(f"{self.directory}/lock: {exc.strerror}.") from exc
        try:
            yield
        finally:
            self._lock.release()

    def _write(self, run: Run) -> None:
        assert run.path is not None
        try:
            if run.is_empty:
                run.path.unlink(missing_ok=True)
                return
            partial = run.path.with_suffix(".new")
            data = json.dumps(run.to_json()).encode("ascii")
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.write(fd, data)
                os.fsync(fd)  # it must survive a crash of the machine
            finally:
                os.close(fd)
            partial.replace(run.path)
        except OSError as exc:
            raise ForkdError(
                f"cannot write {run.path}: {exc.strerror}. It is to hold the list of what is to be "
                "deleted from forkd daemons."
            ) from exc

    @staticmethod
    def _read(path: Path) -> Run | None:
        try:
            return Run.from_json(json.loads(path.read_bytes()), path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as exc:
            raise ForkdError(f"{path} is no record of a run: {exc}") from exc


def make_run_tag() -> str:
    """A unique tag for a run's branch; :func:`is_run_tag` recognises its form."""
    return f"pytest-forkd-run-{uuid.uuid4().hex[:20]}"


def is_run_tag(tag: str) -> bool:
    """Whether :func:`make_run_tag` has made a tag."""
    return _RUN_TAG.fullmatch(tag) is not None


def process_identity(pid: int) -> str | None:
    """A text that tells a process from others with the same pid; ``None`` if it has gone.

    Sources: proc_pid_stat(5), field 22; random(4) for the boot id.
    """
    fields = read_stat(pid)
    if fields is None:
        if os.path.isdir("/proc/self"):
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return str(pid)
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return None if fields[0] == "Z" else f"{boot} {pid} {fields[19]}"


def state_directory() -> Path:
    """The directory of this user's lists about daemons."""
    return user_state() / "forkd"


def _host() -> str:
    """An id of this machine; others may share its files."""
    with contextlib.suppress(OSError), open("/etc/machine-id", encoding="ascii") as file:
        return f"{socket.gethostname()} {file.read().strip()}"
    return socket.gethostname()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)
