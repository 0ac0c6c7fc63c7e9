"""The controller's end: finds the files of the working tree, and reads them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from pytest_forkd.sync.tree import (
    ALWAYS_EXCLUDED,
    Manifest,
    TreeEntry,
    entry_of,
    matcher,
    to_bytes,
    to_text,
    walk,
)

__all__ = ["UNINTERESTING", "Cache", "Rules", "SyncError", "WorkingTree", "find_root", "scan"]

#: Folders that a walk skips if git cannot tell what belongs to the tree; ``pyvenv.cfg`` stands for
#: virtual environments of any name.
UNINTERESTING = frozenset(
    {
        ".bzr",
        ".eggs",
        ".hg",
        ".hypothesis",
        ".ipynb_checkpoints",
        ".mypy_cache",
        ".nox",
        ".pytest_cache",
        ".ruff_cache",
        ".svn",
        ".tox",
        ".venv",
        "node_modules",
        "pyvenv.cfg",
    }
)
#: Seconds for git to list a tree's files.
_GIT_TIMEOUT = 60.0
#: Nanoseconds. If a file was changed less than this before it was read, another change may leave
#: its time and size the same.
_SETTLED = 2 * 10**9
#: Variables that make git use another repository than that of its directory, as in a git hook.
_GIT_VARIABLES = (
    "GIT_CEILING_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_WORK_TREE",
)

#: By absolute path: the file's stamp, and its entry at that time.
Cache = dict[bytes, tuple[tuple[int, ...], TreeEntry]]


class SyncError(Exception):
    """The working tree cannot be read; the message says why."""


@dataclass(frozen=True)
class Rules:
    """Which files of a working tree are sent.

    :ivar exclude: patterns of files that are not sent (see ``tree.matcher``), and are left alone in
        the guest.
    :ivar include: patterns of files that are sent although git ignores them. A pattern with a path
        is quick; for a bare name, the whole tree is walked.
    """

    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()


@dataclass
class WorkingTree:
    """The files of a project.

    :ivar root: its absolute path.
    :ivar manifest: the files and their contents.
    :ivar by_git: whether git listed the files.
    :ivar unreadable: paths that exist but could not be read; they are not in the manifest.
    :ivar repositories: folders that are repositories of their own, mostly submodules; the root is
        the empty string.
    """

    root: str
    rules: Rules
    manifest: Manifest = field(default_factory=dict)
    by_git: bool = False
    unreadable: list[str] = field(default_factory=list)
    repositories: list[str] = field(default_factory=list)

    def guest_arguments(self) -> tuple[list[str], list[str]]:
        """The arguments ``exclude`` and ``prune`` for the guest's call of ``tree.manifest``."""
        names = {name for path in self.manifest for name in path.split("/")}
        return list(self.rules.exclude), sorted(UNINTERESTING - names)

    def ignored(self, paths: Iterable[str]) -> set[str]:
        """Which of ``paths``, none of them in the manifest, are to be left alone in the guest.

        These are files that git ignores, or a walk leaves out, such as compiled extensions. All
        others must be deleted.

        :raises SyncError: if git fails.
        """
        excluded = matcher([*self.rules.exclude, *ALWAYS_EXCLUDED])
        included = matcher(self.rules.include)
        left_alone = {path for path in paths if excluded(path)}
        asked: dict[str, list[str]] = {}
        for path in paths:
            if path in left_alone or included(path):
                continue
            if self.by_git:
                asked.setdefault(self._known_part(path), []).append(path)
            elif not UNINTERESTING.isdisjoint(path.split("/")[:-1]):
                left_alone.add(path)
        for part in _ask_git(self.root, self.repositories, asked):
            left_alone.update(asked[part])
        return left_alone

    def _known_part(self, path: str) -> str:
        """``path``, or the first of its parents that is not a folder here: git stops there."""
        at = path.find("/")
        while at >= 0:
            if not _is_real_folder(os.path.join(self.root, path[:at])):
                # If it is missing, git does not stop there: a rule may match a path inside it.
                return path[:at] if os.path.lexists(os.path.join(self.root, path[:at])) else path
            at = path.find("/", at + 1)
        return path


def find_root(folder: str) -> str:
    """The root of the tree to send for a suite in ``folder``: its repository, else ``folder``.

    The tested code may be outside the suite's root directory. A repository that ignores the suite
    does not count.
    """
    folder = os.path.abspath(folder)
    try:
        top = _git(folder, "rev-parse", "--show-toplevel").rstrip(b"\n")
    except SyncError:
        return folder
    if not top or _is_ignored(folder):
        return folder
    # git resolves links, but the path must be the one that the suite uses.
    for candidate in _ancestors(folder):
        with contextlib.suppress(OSError):
            if os.path.samefile(candidate, top):
                return candidate
    return folder


def scan(root: str, rules: Rules | None = None, cache: Cache | None = None) -> WorkingTree:
    """Read a working tree.

    :param cache: kept by the caller between scans in the same process; files that have not changed
        are not read again.
    :raises SyncError: if ``root`` is not a folder.
    """
    root = os.path.abspath(root)
    tree = WorkingTree(root, rules or Rules())
    if not os.path.isdir(root):
        raise SyncError(f"{root} is no folder")
    excluded = matcher([*tree.rules.exclude, *ALWAYS_EXCLUDED])
    included = matcher(tree.rules.include)
    found: set[bytes] = set()
    try:
        tree.by_git = not _is_ignored(root) and _list_repository(tree, "", found)
    except SyncError:
        tree.by_git = False
    if not tree.by_git:
        found = {*walk(os.fsencode(root), excluded, _names(UNINTERESTING))}
    if tree.rules.include:
        found.update(_walk_included(root, tree.rules.include, excluded, included))
    _read(tree, found, excluded, {} if cache is None else cache)
    return tree


def _read(
    tree: WorkingTree, paths: Collection[bytes], excluded: Callable[[str], bool], cache: Cache
) -> None:
    root = os.fsencode(tree.root)
    folders: dict[bytes, bool] = {b"": True}
    for path in sorted(paths):
        text = to_text(path)
        if excluded(text) or not _on_real_folders(root, path.rpartition(b"/")[0], folders):
            continue
        absolute = os.path.join(root, path)
        entry = _entry(absolute, cache)
        if entry is None or entry.kind == "other":
            continue
        if not entry.digest:
            tree.unreadable.append(text)
        else:
            tree.manifest[text] = entry


def _entry(path: bytes, cache: Cache) -> TreeEntry | None:
    try:
        info = os.lstat(path)
    except OSError:
        return None
    state = (info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
    known = cache.get(path)
    if known is not None and known[0] == state:
        return known[1]
    entry = entry_of(path)
    if entry is not None and time.time_ns() - info.st_mtime_ns > _SETTLED:
        cache[path] = (state, entry)
    return entry


def _on_real_folders(root: bytes, folder: bytes, known: dict[bytes, bool]) -> bool:
    """Whether no part of ``folder`` is a link; git's index may be out of date about that."""
    answer = known.get(folder)
    if answer is None:
        answer = known[folder] = _on_real_folders(
            root, folder.rpartition(b"/")[0], known
        ) and _is_real_folder(os.path.join(root, folder))
    return answer


def _is_real_folder(path: str | bytes) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _names(texts: Iterable[str]) -> frozenset[bytes]:
    return frozenset(to_bytes(text) for text in texts)


def _ancestors(folder: str) -> Iterable[str]:
    while True:
        yield folder
        above = os.path.dirname(folder)
        if above == folder:
            return
        folder = above


def _walk_included(
    root: str,
    patterns: Iterable[str],
    excluded: Callable[[str], bool],
    included: Callable[[str], bool],
) -> Iterable[bytes]:
    """The files that the patterns match, whether or not git ignores them."""
    starts = set()
    for pattern in patterns:
        fixed = []
        for part in pattern.strip("/").split("/"):
            if any(char in part for char in "*?["):
                break
            fixed.append(part)
        starts.add("/".join(fixed) if "/" in pattern.rstrip("/") else "")
    for start in starts:
        top = os.path.join(os.fsencode(root), to_bytes(start))
        prefix = start + "/" if start else ""
        if not _is_real_folder(top):
            if os.path.lexists(top) and included(start):
                yield to_bytes(start)
            continue
        # A path given explicitly is wanted even in a skipped folder; a match of a bare name is not.
        prune = () if start else _names(UNINTERESTING)
        for path in walk(top, matcher(ALWAYS_EXCLUDED), prune):
            if included(prefix + to_text(path)) and not excluded(prefix + to_text(path)):
                yield to_bytes(prefix) + path


# git ----------------------------------------------------------------------------------------------


def _list_repository(tree: WorkingTree, prefix: str, found: set[bytes]) -> bool:
    """Add the files that git lists in the repository at ``prefix``, and in those inside it.

    :returns: false if there is no repository.
    """
    folder = os.path.join(tree.root, prefix)
    listing = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    tree.repositories.append(prefix)
    start = to_bytes(prefix) + b"/" if prefix else b""
    for name in listing.split(b"\0"):
        if not name:
            continue
        path = start + name.rstrip(b"/")
        absolute = os.path.join(os.fsencode(tree.root), path)
        # A submodule is a folder in the index; an untracked repository is listed with a final '/'.
        if not _is_real_folder(absolute):
            found.add(path)
        elif os.path.lexists(os.path.join(absolute, b".git")):
            _list_inner(tree, to_text(path), found)
        elif name.endswith(b"/"):
            found.update(_walk_inner(absolute, path))
    return True


def _list_inner(tree: WorkingTree, prefix: str, found: set[bytes]) -> None:
    try:
        _list_repository(tree, prefix, found)
    except SyncError:
        absolute = os.path.join(os.fsencode(tree.root), to_bytes(prefix))
        found.update(_walk_inner(absolute, to_bytes(prefix)))


def _walk_inner(absolute: bytes, path: bytes) -> Iterable[bytes]:
    excluded = matcher(ALWAYS_EXCLUDED)
    for name in walk(absolute, excluded, _names(UNINTERESTING)):
        yield path + b"/" + name


def _ask_git(root: str, repositories: Collection[str], paths: Iterable[str]) -> set[str]:
    """Which of ``paths`` git ignores."""
    inner = sorted((one for one in repositories if one), key=len, reverse=True)
    groups: dict[str, list[str]] = {}
    for path in paths:
        owner = next((one for one in inner if path.startswith(one + "/")), "")
        groups.setdefault(owner, []).append(path[len(owner) + 1 :] if owner else path)
    answer: set[str] = set()
    for owner, names in groups.items():
        prefix = owner + "/" if owner else ""
        answer.update(prefix + name for name in _check_ignore(os.path.join(root, owner), names))
    return answer


def _check_ignore(folder: str, names: list[str]) -> set[str]:
    # './' keeps git from reading a leading ':' as its own syntax.
    data = b"".join(b"./" + to_bytes(name) + b"\0" for name in names)
    try:
        # Status 1 means that none is ignored.
        output = _git(folder, "check-ignore", "-z", "--stdin", data=data, status=(0, 1))
    except SyncError:
        # git fails for some paths, such as those in a missing submodule. Bisect to find these: they
        # are not ignored.
        if len(names) == 1:
            return set()
        half = len(names) // 2
        return _check_ignore(folder, names[:half]) | _check_ignore(folder, names[half:])
    return {to_text(name[2:]) for name in output.split(b"\0") if name}


def _is_ignored(folder: str) -> bool:
    """Whether ``folder`` is in a repository that ignores it."""
    try:
        if not _git(folder, "rev-parse", "--show-prefix").strip():
            return False
        if _git(folder, "ls-files", "-z", "--", ".")[:1]:
            return False
        return bool(_git(folder, "check-ignore", "--", ".", status=(0, 1)))
    except SyncError:
        return False


def _git(folder: str, *args: str, data: bytes = b"", status: Collection[int] = (0,)) -> bytes:
    environ = {name: value for name, value in os.environ.items() if name not in _GIT_VARIABLES}
    environ["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(
            ["git", "-C", folder, *args],
            input=data,
            capture_output=True,
            timeout=_GIT_TIMEOUT,
            env=environ,
        )
    except FileNotFoundError:
        raise SyncError("git is not installed") from None
    except subprocess.TimeoutExpired:
        raise SyncError(f"git {args[0]} took more than {_GIT_TIMEOUT:g} seconds") from None
    if done.returncode not in status:
        message = done.stderr.decode("utf-8", "replace").strip()
        raise SyncError(f"git {args[0]}: {message or f'exit code {done.returncode}'}")
    return done.stdout
