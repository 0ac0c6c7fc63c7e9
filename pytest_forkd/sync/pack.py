"""Packs a difference into bytes to send; ``apply`` describes the format and unpacks it."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator

from pytest_forkd.sync.apply import (
    CHUNK,
    DELETE,
    END,
    FILE,
    LINK,
    MAGIC,
    MAX_CHUNK,
    RECORD,
)
from pytest_forkd.sync.difference import Difference
from pytest_forkd.sync.scan import SyncError
from pytest_forkd.sync.tree import content_hash, to_bytes

__all__ = ["pack"]

#: About how many bytes are yielded at once.
_PIECE_BYTES = 1 << 18
#: The fastest level: on a slow link, most of the gain comes from compressing at all.
_LEVEL = 1


def pack(what: Difference, *, compress: bool = True) -> Iterator[bytes]:
    """The bytes of a difference, piece by piece; files are read while they are packed.

    :param compress: false if the guest is on this machine, where compressing is not worth it.
    :raises SyncError: if a file that the guest has, too, has gone since it was scanned, or any file
        has become unreadable.
    """
    deflate = zlib.compressobj(_LEVEL if compress else 0)
    piece = bytearray(MAGIC)
    for part in _records(what):
        piece += deflate.compress(part)
        if len(piece) >= _PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    piece += deflate.flush()
    yield bytes(piece)


def _records(what: Difference) -> Iterator[bytes]:
    for path in what.delete:
        yield _header(DELETE, to_bytes(path))
    for path in what.write:
        name = to_bytes(path)
        absolute = os.path.join(os.fsencode(what.tree.root), name)
        try:
            if what.tree.manifest[path].kind == "link":
                target = os.readlink(absolute)
                yield _header(LINK, name)
                yield from _content([target])
            else:
                yield from _file(name, absolute)
        except OSError as exc:
            # A new file that has gone again is an editor's or a tool's temporary file, most likely:
            # the guest does not have it either.
            if not isinstance(exc, FileNotFoundError) or path in what.have:
                shown = name.decode("utf-8", "backslashreplace")
                raise SyncError(
                    f"{shown} changed while the working tree was being sent ({exc.strerror}); "
                    "run again"
                ) from exc
    yield _header(END, b"")


def _file(name: bytes, absolute: bytes) -> Iterator[bytes]:
    fd = os.open(absolute, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(0, "it is no file any more")
        yield _header(FILE, name, info.st_mode & 0o777, max(info.st_mtime_ns, 0))
        yield from _content(iter(lambda: file.read(MAX_CHUNK), b""))


def _content(chunks: Iterator[bytes] | list[bytes]) -> Iterator[bytes]:
    digest = content_hash()
    for chunk in chunks:
        digest.update(chunk)
        yield CHUNK.pack(len(chunk))
        yield chunk
    yield CHUNK.pack(0) + digest.digest()


def _header(what: bytes, path: bytes, mode: int = 0, mtime: int = 0) -> bytes:
    return RECORD.pack(what, mode, mtime, len(path)) + path
