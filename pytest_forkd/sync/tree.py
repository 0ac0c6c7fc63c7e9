"""Lists a tree of files; used at both ends, so it imports only the standard library.

Paths are relative to the tree's root, with ``/``, decoded as UTF-8 with ``surrogateescape``, so
that any name that Linux allows survives, also in JSON. Folders have no entries: as in git, a folder
exists because something is in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

__all__ = [
    "ALWAYS_EXCLUDED",
    "DIGEST_SIZE",
    "MAX_TEXT",
    "TEMPORARY",
    "Manifest",
    "TreeEntry",
    "content_hash",
    "entry_of",
    "manifest",
    "matcher",
    "texts",
    "to_bytes",
    "to_text",
    "walk",
]

#: Names that are never sent, deleted or looked into: git's own data, and bytecode, which depends on
#: the interpreter.
ALWAYS_EXCLUDED = frozenset({".git", "__pycache__"})
#: Prefix of the name of a file that is being written.
TEMPORARY = b".pytest-forkd-sync-"
DIGEST_SIZE = 20
#: Bytes of a file that :func:`texts` reads.
MAX_TEXT = 1 << 18
_READ_BYTES = 1 << 20
_REGULAR_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class TreeEntry(NamedTuple):
    """What is at a path.

    :ivar kind: ``file``, ``link``, or ``other`` (a socket, a device, ...: never sent).
    :ivar mode: the permission bits of a file; 0 for anything else.
    :ivar size: the size of a file, in bytes.
    :ivar digest: the digest of a file's content or a link's target; empty if it cannot be read.
    """

    kind: str
    mode: int
    size: int
    digest: str


#: Entries by relative path.
Manifest = dict[str, TreeEntry]


def to_text(path: bytes) -> str:
    """A path as the manifest has it."""
    return path.decode("utf-8", "surrogateescape")


def to_bytes(path: str) -> bytes:
    """A path of the manifest as bytes for system calls.

    :raises UnicodeEncodeError: if no path can have this text.
    """
    return path.encode("utf-8", "surrogateescape")


def content_hash(data: bytes = b"") -> hashlib.blake2b:
    """A hash object for contents; its digest has :data:`DIGEST_SIZE` bytes."""
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE)


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """A predicate for relative paths: whether a pattern matches one, or a folder that it is in.

    A pattern without ``/`` is compared with names at any depth, one with ``/`` with the whole path
    from the root. ``*`` and ``?`` do not match ``/``; ``**`` does; ``[...]`` is a set.
    """
    names: list[str] = []
    paths: list[str] = []
    for pattern in patterns:
        bare = pattern.strip("/")
        if bare:
            (paths if "/" in pattern.rstrip("/") else names).append(_translate(bare))
    alternatives = [rf"(?:.*/)?(?:{'|'.join(names)})"] if names else []
    alternatives += [f"(?:{'|'.join(paths)})"] if paths else []
    if not alternatives:
        return lambda path: False
    compiled = re.compile(rf"(?:{'|'.join(alternatives)})(?:/.*)?", re.DOTALL)
    return lambda path: compiled.fullmatch(path) is not None


def _translate(pattern: str) -> str:
    """A glob pattern as a regular expression."""
    out = []
    at = 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out.append("(?:.*/)?")
            at += 3
            continue
        if pattern.startswith("**", at):
            out.append(".*")
            at += 2
            continue
        char = pattern[at]
        at += 1
        if char == "*":
            out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char == "[" and (end := pattern.find("]", at + 1)) > 0:
            inner = pattern[at:end].replace("\\", "\\\\").replace("[", "\\[")
            negated = inner[:1] in ("!", "^")
            inner = inner[1:] if negated else inner
            out.append(f"(?!/)[{'^' if negated else ''}{_escape_set(inner)}]")
            at = end + 1
        else:
            out.append(re.escape(char))
    return "".join(out)


def _escape_set(inner: str) -> str:
    """Escape the inside of ``[...]`` for a regular expression; ``a-z`` stays a range."""
    out = []
    at = 0
    while at < len(inner):
        char = inner[at]
        if at + 2 < len(inner) and inner[at + 1] == "-" and char <= inner[at + 2]:
            out.append(f"{re.escape(char)}-{re.escape(inner[at + 2])}")
            at += 3
        else:
            out.append(re.escape(char))
            at += 1
    return "".join(out)


def manifest(root: str, exclude: Iterable[str] = (), prune: Collection[str] = ()) -> Manifest:
    """The manifest of the tree at ``root``; empty if nothing is there.

    :param exclude: patterns (see :func:`matcher`) of paths to leave out.
    :param prune: names of folders to skip. If ``pyvenv.cfg`` is among them, virtual environments
        are skipped, too.
    """
    excluded = matcher([*exclude, *ALWAYS_EXCLUDED])
    found: Manifest = {}
    for path in walk(os.fsencode(root), excluded, frozenset(to_bytes(name) for name in prune)):
        entry = entry_of(os.path.join(os.fsencode(root), path))
        if entry is not None:
            found[to_text(path)] = entry
    return found


def walk(root: bytes, excluded: Callable[[str], bool], prune: Collection[bytes]) -> Iterator[bytes]:
    """The relative paths of everything but folders; links are not followed."""
    pending = [b""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder) if folder else root) as entries:
                listing = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except OSError:
            continue  # it is gone, or may not be read
        if folder and b"pyvenv.cfg" in prune and (b"pyvenv.cfg", False) in listing:
            continue
        for name, is_folder in listing:
            path = folder + b"/" + name if folder else name
            if excluded(to_text(path)):
                continue
            if not is_folder:
                yield path
            elif name not in prune:
                pending.append(path)


def entry_of(path: bytes) -> TreeEntry | None:
    """What is at an absolute path, read without following a link; ``None`` if nothing is."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    if stat.S_ISLNK(info.st_mode):
        with contextlib.suppress(OSError):
            return TreeEntry("link", 0, 0, content_hash(os.readlink(path)).hexdigest())
        return None
    if not stat.S_ISREG(info.st_mode):
        return TreeEntry("other", 0, 0, "")
    try:
        size, digest = _digest(path)
    except OSError:
        size, digest = info.st_size, ""
    return TreeEntry("file", info.st_mode & 0o777, size, digest)


def _digest(path: bytes) -> tuple[int, str]:
    fd = os.open(path, _REGULAR_FILE_FLAGS)
    try:
        digest, size = content_hash(), 0
        while data := os.read(fd, _READ_BYTES):
            digest.update(data)
            size += len(data)
        return size, digest.hexdigest()
    finally:
        os.close(fd)


def texts(root: str, paths: Iterable[str]) -> dict[str, str]:
    """The text of some small files of a tree; missing files and binary files are left out."""
    found = {}
    for path in paths:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            fd = os.open(os.path.join(os.fsencode(root), to_bytes(path)), _REGULAR_FILE_FLAGS)
            with open(fd, "rb") as file:
                data = file.read(MAX_TEXT + 1)
            if len(data) <= MAX_TEXT:
                found[path] = data.decode("utf-8")
    return found
