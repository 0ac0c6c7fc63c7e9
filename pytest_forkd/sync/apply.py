"""The guest's end: makes a tree equal to the controller's. Standard library only.

A difference arrives as :data:`MAGIC` and a zlib stream of records: what to delete, then what to
write, then the end. Each record is a header (:data:`RECORD`), a path, and for files and links the
content in chunks, each with its length, then an empty chunk and the digest of it all.

Nothing outside the root is ever written: folders are opened one by one, from the root down, without
following links, and files are created by name in the open folder. The format has no hard links and
no devices, and whatever exists at a path is replaced, never written to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from pytest_forkd.sync.folders import ApplyError, Folders
from pytest_forkd.sync.tree import DIGEST_SIZE, content_hash, manifest

__all__ = ["MAX_BYTES", "Applied", "Applier", "ApplyError", "apply", "manifest"]

MAGIC = b"pytest-forkd sync 1\n"
#: A header: action, permission bits, modification time in nanoseconds, length of the path.
RECORD = struct.Struct("!cHqH")
DELETE, FILE, LINK, END = b"D", b"F", b"L", b"E"
CHUNK = struct.Struct("!I")
MAX_CHUNK = 1 << 20
#: Bytes that one difference may write, unless told otherwise.
MAX_BYTES = 4 << 30
#: Paths that one difference may have.
MAX_RECORDS = 2_000_000
#: Linux's limits for a path, with the terminating null byte, and for a name.
_PATH_MAX, _NAME_MAX = 4096, 255
#: Folders inside each other.
_MAX_DEPTH = 200
#: Bytes decompressed at once: a small stream may expand to a huge one.
_DECOMPRESS_BYTES = 1 << 20

_P = ParamSpec("_P")
_T = TypeVar("_T")
#: The parser's steps: each yields how many bytes it needs next.
_Steps = Generator[int, bytes, None]


@dataclass
class Applied:
    """What was done.

    :ivar written: how many files and links were written.
    :ivar deleted: how many files and links were deleted.
    :ivar size: bytes written.
    """

    written: int = 0
    deleted: int = 0
    size: int = 0


def apply(root: str, data: Iterable[bytes], max_bytes: int = MAX_BYTES) -> Applied:
    """Apply a difference to the tree at ``root``, which is created if it does not exist.

    :param data: the difference, in pieces of any length.
    :param max_bytes: how many bytes it may write.
    :raises ApplyError: if it is damaged, refused, or cannot be written.
    """
    with contextlib.closing(Applier(root, max_bytes)) as applier:
        for piece in data:
            applier.feed(piece)
        return applier.finish()


class Applier:
    """Applies a difference that arrives piece by piece; call :meth:`close` in any case.

    :raises ApplyError: if the root cannot be made.
    """

    def __init__(self, root: str, max_bytes: int = MAX_BYTES) -> None:
        self.applied = Applied()
        self._max_bytes = max_bytes
        self._done = self._failed = False
        self._magic = b""
        self._inflate = zlib.decompressobj()
        self._buffer = bytearray()
        self._tree = Folders(root)
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
                # All input may have been consumed while there is still output to come.
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
        """End the difference.

        :raises ApplyError: if it is not complete.
        """
        if self._failed or not (self._done and self._inflate.eof):
            raise ApplyError("the difference ends too early")
        return self.applied

    def close(self) -> None:
        """Drop an incomplete file; the tree stays as it is."""
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
    """Call ``function``; turn an :exc:`OSError` into an :exc:`ApplyError` that names the path."""
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
