"""The files and directories that modules read while they are imported."""

from __future__ import annotations

import builtins
import contextlib
import importlib.machinery
import io
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from os import scandir as _scandir  # imported by name, so that it is never a stand-in
from os import stat as _stat
from stat import S_ISDIR
from types import ModuleType
from typing import Any

__all__ = ["Reads"]

_Stamp = tuple[int, ...]

#: File systems whose contents the kernel generates.
_NO_FILES = ("/proc/", "/sys/", "/dev/")
#: Entries of a directory that a search for distributions looks at.
_DISTRIBUTIONS = (".dist-info", ".egg-info", ".egg", ".egg-link")
_SEARCHES_DISTRIBUTIONS = ("importlib.metadata", "importlib_metadata", "pkg_resources")

_SPACE_OF_MODULE: Any = vars(ModuleType)["__dict__"].__get__
_SPACE_OF_CLASS: Any = vars(type)["__dict__"].__get__


class Reads:
    """Records files that were opened, directories that were listed, and paths that were missing.

    Functions of the standard library are replaced while modules are imported, and put back. An
    audit hook would see more, but it can't be removed: it would be called for each ``id()`` in each
    worker. Files that a C library opens by itself are not noticed.

    :param stamp: identifies a file and its contents by what stat() tells; ``None`` if there is no
        such file. Items 3 and 4 of a stamp are mtime and ctime, in nanoseconds.
    :param tick: resolution of file times, in nanoseconds.
    """

    def __init__(self, stamp: Callable[[str], _Stamp | None], tick: int) -> None:
        self._stamp = stamp
        self._tick = tick
        self._files: dict[str, _Stamp | None] = {}
        #: Files read within a tick of being written: another write may have left the same stamp.
        self._young: set[str] = set()
        self._missed: set[str] = set()
        #: The names in a directory. The key is its path, and whether only distributions count.
        self._folders: dict[tuple[str, bool], frozenset[str] | None] = {}

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what any thread reads inside the block."""
        modules = set(sys.modules)
        stand_ins = {
            "open": _StandIn(open, self._open),
            "open_code": _StandIn(io.open_code, self._open),
            "os.open": _StandIn(os.open, self._os_open),
            "listdir": _StandIn(os.listdir, self._list),
            "scandir": _StandIn(os.scandir, self._list),
            "stat": _StandIn(os.stat, failed=self._look_in_vain),
        }
        replaced: list[tuple[Any, str, _StandIn]] = [
            (builtins, "open", stand_ins["open"]),
            (io, "open", stand_ins["open"]),
            (io, "open_code", stand_ins["open_code"]),
            (os, "open", stand_ins["os.open"]),
            *((os, name, stand_ins[name]) for name in ("listdir", "scandir", "stat")),
        ]
        # In Python 3.10, pathlib keeps its own references to these functions.
        if (accessor := getattr(pathlib, "_NormalAccessor", None)) is not None:
            names = ("open", "listdir", "scandir", "stat")
            replaced += [(accessor, name, stand_ins[name]) for name in names]
        for owner, name, stand_in in replaced:
            setattr(owner, name, stand_in)
        loader: Any = next(
            base
            for base in importlib.machinery.SourceFileLoader.__mro__
            if "get_data" in vars(base)
        )
        get_data = loader.get_data

        def noted_get_data(self_: object, path: str) -> bytes:
            if not path.endswith((".py", ".pyc")):  # imported modules are recorded elsewhere
                self._read(path)
            return get_data(self_, path)  # type: ignore[no-any-return]

        loader.get_data = noted_get_data
        try:
            yield
        finally:
            if loader.get_data is noted_get_data:
                loader.get_data = get_data
            for owner, name, stand_in in replaced:
                stand_in.retire()
                if getattr(owner, name) is stand_in:
                    setattr(owner, name, stand_in.original)
            _put_back(sys.modules.keys() - modules)

    def take(self) -> str | None:
        """Go through what was read since the last call.

        :returns: a file that may have been rewritten just after it was read, if there is one.
        """
        missed, self._missed = self._missed, set()
        for path in missed:
            # If it exists now, an import has made it, and the next import would find it.
            self._files[path] = self._stamp(path)
        young, self._young = self._young, set()
        for path in list(young):
            if self._stamp(path) is None:  # a temporary file: an import has removed it again
                young.discard(path)
                del self._files[path]
        return min(young, default=None)

    def changed(self) -> str | None:
        """The first file or directory that has changed; ``None`` if none has."""
        for path, stamp in self._files.items():
            if self._stamp(path) != stamp:
                return path
        for (path, distributions), names in self._folders.items():
            found = _names(path, distributions)
            if found != names:
                different = sorted((found or frozenset()) ^ (names or frozenset()))
                return os.path.join(path, *different[:1])
        return None

    def _open(self, file: object, mode: object = "r", *_rest: object, **_more: object) -> None:
        if isinstance(mode, str) and not set(mode) & set("wax"):
            self._read(file)

    def _os_open(self, path: object, flags: object, *_rest: object, **more: object) -> None:
        if (
            isinstance(flags, int)
            and flags & os.O_ACCMODE == os.O_RDONLY
            and not more.get("dir_fd")
        ):
            self._read(path)

    def _read(self, file: object) -> None:
        path = _absolute(file)
        if path is None or path in self._files:
            return
        now = time.time_ns()
        stamp = self._stamp(path)
        if stamp is None:
            self._miss(path)
        elif not S_ISDIR(_stat(path).st_mode):
            self._files[path] = stamp
            if max(stamp[3:5]) >= now - self._tick:
                self._young.add(path)

    def _look_in_vain(self, path: object, *_rest: object, **more: object) -> None:
        found = _absolute(path) if not more.get("dir_fd") else None
        if found is not None and found not in self._files:
            self._miss(found)

    def _miss(self, path: str) -> None:
        self._files[path] = None
        self._missed.add(path)

    def _list(self, path: object = ".") -> None:
        found = _absolute(path)
        if found is None:
            return
        caller = sys._getframe(2).f_globals.get("__name__")
        distributions = caller in _SEARCHES_DISTRIBUTIONS
        if (found, distributions) not in self._folders:
            self._folders[found, distributions] = _names(found, distributions)


class _StandIn:
    """Replaces a function, and compares equal to it.

    :param called: called with the arguments of each call, before the call is made.
    :param failed: called with the arguments of each call that raises FileNotFoundError.
    """

    def __init__(
        self,
        original: Callable[..., Any],
        called: Callable[..., None] | None = None,
        failed: Callable[..., None] | None = None,
    ) -> None:
        self.original = original
        self._called = called
        self._failed = failed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._called is not None:
            with contextlib.suppress(Exception):  # for wrong arguments, let the original raise
                self._called(*args, **kwargs)
        try:
            return self.original(*args, **kwargs)
        except FileNotFoundError:
            if self._failed is not None:
                self._failed(*args, **kwargs)
            raise

    def retire(self) -> None:
        """Only call the original from now on: somebody may have kept a reference to this."""
        self._called = self._failed = None

    def __eq__(self, other: object) -> bool:
        return self is other or self.original == other

    def __hash__(self) -> int:  # keeps ``os.stat in os.supports_fd`` true
        return hash(self.original)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def _put_back(modules: set[str]) -> None:
    """Restore the original in each module or class attribute that holds a stand-in."""
    for name in modules:
        module = sys.modules.get(name)
        if not issubclass(type(module), ModuleType):
            continue
        # getattr() or isinstance() would make lazy objects, such as Django's settings, load now.
        space: dict[str, Any] = _SPACE_OF_MODULE(module)
        for key, value in list(space.items()):
            if type(value) is _StandIn:
                space[key] = value.original
            elif issubclass(type(value), type):
                parts = _SPACE_OF_CLASS(value) or {}  # a class defined in C may not be ready yet
                kept = {key: part for key, part in parts.items() if type(part) is _StandIn}
                for attribute, part in kept.items():
                    with contextlib.suppress(Exception):
                        type.__setattr__(value, attribute, part.original)


def _absolute(file: object) -> str | None:
    """The absolute path of a file; ``None`` for a descriptor, or a file that is not recorded."""
    if not isinstance(file, (str, bytes, os.PathLike)):
        return None
    path = os.path.abspath(os.fsdecode(file))
    return None if path.startswith(_NO_FILES) or "/__pycache__/" in path else path


def _names(path: str, distributions: bool) -> frozenset[str] | None:
    """The names in a directory, or only its distributions; ``None`` if it can't be listed.

    Hidden files and bytecode are left out: they come and go in a directory that is worked in.
    """
    try:
        with _scandir(path) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return None
    if distributions:
        return frozenset(name for name in names if name.endswith(_DISTRIBUTIONS))
    return frozenset(name for name in names if not name.startswith(".") and name != "__pycache__")
