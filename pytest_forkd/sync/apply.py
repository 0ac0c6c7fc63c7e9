"""The guest's end: makes a tree equal to the controller's. Standard library only.

A difference arrives as :data:`MAGIC` and a zlib stream of records: what to delete, then what to
write, then the end. Each record is a header (:data:`RECORD`), a path, and for files and links the
content in chunks, each with its length, then an empty chunk and the digest of it all.

Nothing outside the root is ever written: folders are opened one by one, from the root down, without
following a link, and files are made by name in the folder that is open. There are no hard links and
no devices in the format, and whatever is found at a path is replaced, never written to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import zlib
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from pytest_forkd.sync.tree import DIGEST_SIZE, TEMPORARY, content_hash, manifest

__all__ = ["MAX_BYTES", "Applied", "Applier", "ApplyError", "apply", "manifest"]

MAGIC = b"pytest-forkd sync 1\n"
#: What to do, permission bits, modification time in nanoseconds, length of the path.
RECORD = struct.Struct("!cHqH")
DELETE, FILE, LINK, END = b"D", b"F", b"L", b"E"
CHUNK = struct.Struct("!I")
MAX_CHUNK = 1 << 20
#: Bytes that one difference may write, unless told otherwise.
MAX_BYTES = 4 << 30
#: Paths that one difference may have.
MAX_RECORDS = 2_000_000
#: Of Linux, with the terminating null byte, and of its file systems.
_PATH_MAX, _NAME_MAX = 4096, 255
#: Folders inside each other.
_MAX_DEPTH = 200
#: How much is decompressed at once: a small stream may stand for a large one.
_DECOMPRESS_BYTES = 1 << 20
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_P = ParamSpec("_P")
_T = TypeVar("_T")
#: What a step of the parser gives is how many bytes it needs next.
_Steps = Generator[int, bytes, None]


class ApplyError(Exception):
    """A difference cannot be applied; the message says why. The tree may be changed in part."""


@dataclass
class Applied:
    """What was done.

    :ivar written: files and links.
    :ivar deleted: files and links.
    :ivar size: bytes written.
    """

    written: int = 0
    deleted: int = 0
    size: int = 0


def apply(root: str, data: Iterable[bytes], max_bytes: int = MAX_BYTES) -> Applied:
    """Apply a difference to the tree at ``root``, which is made if it does not exist.

    :param data: the difference, cut anywhere.
    :param max_bytes: how much it may write.
    :raises ApplyError: if it is damaged, refused, or cannot be written.
    """
    with contextlib.closing(Applier(root, max_bytes)) as applier:
        for piece in data:
            applier.feed(piece)
        return applier.finish()


class Applier:
    """Applies a difference that arrives piece by piece; close it, however it ends.

    :raises ApplyError: if the root cannot be made.
    """

    def __init__(self, root: str, max_bytes: int = MAX_BYTES) -> None:
        self.applied = Applied()
        self._max_bytes = max_bytes
        self._done = self._failed = False
        self._magic = b""
        self._inflate = zlib.decompressobj()
        self._buffer = bytearray()
        self._tree = _Folders(root)
        self._steps = self._records()
        self._needed = next(self._steps)

    def feed(self, data: bytes) -> None:
        """Take the next piece.

        :raises ApplyError: if it is damaged, refused, or cannot be written.
        """
        if len(self._magic) < len(MAGIC):
            taken = len(MAGIC) - len(self._magic)
            self._magic += data[:taken]
            data = data[taken:]
            if not MAGIC.startswith(self._magic):
                self._failed = True
                raise ApplyError("what arrived is no difference that this version understands")
        if self._failed:
            raise ApplyError("the difference was refused before")
        try:
            more = bool(data)
            while more and not self._inflate.eof:
                piece = self._inflate.decompress(data, _DECOMPRESS_BYTES)
                data = self._inflate.unconsumed_tail
                # All input may be taken and output still be held back.
                more = bool(data) or len(piece) == _DECOMPRESS_BYTES
                self._buffer += piece
                self._take()
                if self._done and self._buffer:
                    raise ApplyError("something follows the end of the difference")
        except zlib.error as exc:
            self._failed = True
            raise ApplyError(f"the difference was damaged on its way: {exc}") from exc
        except BaseException:
            self._failed = True
            raise
        if self._inflate.unused_data or (self._inflate.eof and data):
            self._failed = True
            raise ApplyError("something follows the end of the difference")

    def finish(self) -> Applied:
        """Say that this was all.

        :raises ApplyError: if it was not.
        """
        if self._failed or not (self._done and self._inflate.eof):
            raise ApplyError("the difference ends too early")
        return self.applied

    def close(self) -> None:
        """Give up what is not complete; the tree stays as it is."""
        self._steps.close()
        self._tree.close()

    def _take(self) -> None:
        while not self._done and len(self._buffer) >= self._needed:
            piece = bytes(self._buffer[: self._needed])
            del self._buffer[: self._needed]
            try:
                self._needed = self._steps.send(piece)
            except StopIteration:
                self._done = True

    def _records(self) -> _Steps:
        count, writing = 0, False
        while True:
            what, mode, mtime, length = RECORD.unpack((yield RECORD.size))
            if what == END:
                _explained(b".", self._tree.settle)
                return
            count += 1
            if count > MAX_RECORDS:
                raise ApplyError(f"the difference has more than {MAX_RECORDS} paths")
            if not 0 < length < _PATH_MAX:
                raise ApplyError(f"a path of {length} bytes is refused")
            path = yield length
            parts = _checked(path)
            if what == DELETE and not writing:
                self.applied.deleted += _explained(path, self._tree.delete, parts)
            elif what == FILE:
                writing = True
                yield from self._file(path, parts, mode & 0o777, max(mtime, 0))
            elif what == LINK:
                writing = True
                target = yield from self._link_target()
                _explained(path, self._tree.link, parts, target)
                self.applied.written += 1
            else:
                raise ApplyError(f"{_shown(path)}: the record {what!r} is unknown, or out of order")

    def _file(self, path: bytes, parts: list[bytes], mode: int, mtime: int) -> _Steps:
        fd = _explained(path, self._tree.begin, parts)
        digest = content_hash()
        try:
            while size := CHUNK.unpack((yield CHUNK.size))[0]:
                self._count(size)
                data = yield size
                digest.update(data)
                _explained(path, _write_all, fd, data)
            if (yield DIGEST_SIZE) != digest.digest():
                raise ApplyError(f"{_shown(path)} was damaged on its way")
            _explained(path, self._tree.commit, fd, mode, mtime)
        finally:
            os.close(fd)
            self._tree.abandon()
        self.applied.written += 1

    def _link_target(self) -> Generator[int, bytes, bytes]:
        target = b""
        while size := CHUNK.unpack((yield CHUNK.size))[0]:
            if len(target) + size >= _PATH_MAX:
                raise ApplyError(f"a link to a path of more than {_PATH_MAX - 1} bytes is refused")
            target += yield size
        if (yield DIGEST_SIZE) != content_hash(target).digest():
            raise ApplyError("a link was damaged on its way")
        if not target or b"\0" in target:
            raise ApplyError("a link to nothing is refused")
        return target

    def _count(self, size: int) -> None:
        if size > MAX_CHUNK:
            raise ApplyError(f"a chunk of {size} bytes is refused")
        self.applied.size += size
        if self.applied.size > self._max_bytes:
            raise ApplyError(f"the difference writes more than {self._max_bytes >> 20} MiB")


class _Folders:
    """The tree, written to by opened folders only.

    The folder that was used last stays open: what follows is mostly in the same one.
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
        """Delete a file or link; how many there were."""
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
        """Begin to write a file: a descriptor of a temporary one beside it."""
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
        """Nothing more is deleted or written: remove stale bytecode and folders left empty."""
        self._leave()
        for parents in sorted(self._thinned, key=len, reverse=True):
            for depth in range(len(parents), 0, -1):
                try:
                    self._enter(list(parents[: depth - 1]), make=False)
                    os.rmdir(parents[depth - 1], dir_fd=self._folder)
                except OSError:
                    break  # something is in it, or it is gone
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
        """Whether what is there has this time, and Python could take its bytecode for ours.

        Bytecode belongs to a source of the same size, modified in the same second; that which is
        beside the source is removed anyway, but there may be more elsewhere.
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


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _checked(path: bytes) -> list[bytes]:
    """The names of a relative path.

    :raises ApplyError: if it leads anywhere but down.
    """
    parts = path.split(b"/")
    if (
        b"\0" in path
        or len(parts) > _MAX_DEPTH
        or any(not 0 < len(part) <= _NAME_MAX for part in parts)
    ):
        raise ApplyError(f"the path {_shown(path)} is refused")
    if b"." in parts or b".." in parts:
        raise ApplyError(f"the path {_shown(path)} is refused: it leads out of the project")
    return parts


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _explained(path: bytes, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call ``function``; what the system refuses becomes an :exc:`ApplyError` that names a path."""
    try:
        return function(*args, **kwargs)
    except OSError as exc:
        if exc.errno in (errno.ENOTDIR, errno.ELOOP):
            reason = "something on its way is a file or a link, not a folder"
        else:
            reason = exc.strerror or str(exc)
        raise ApplyError(f"{_shown(path)} cannot be changed: {reason}") from exc
    except RecursionError:
        raise ApplyError(f"{_shown(path)} cannot be changed: too many folders in it") from None
