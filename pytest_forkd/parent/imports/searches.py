"""Records where modules were searched for, to tell whether a search would now find another one."""

from __future__ import annotations

import contextlib
import importlib.machinery
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from pytest_forkd.runtime.file_stamps import identity

__all__ = ["Searches"]

#: :mod:`site` searches the whole path for these while Python starts.
_LOOKED_FOR_AT_START = ("sitecustomize", "usercustomize")
_SUFFIXES = tuple(importlib.machinery.all_suffixes())


class _Directory:
    """One directory that was searched.

    :ivar names: last parts of the names of the modules that were searched for in it.
    :ivar state: the directory's own stamp when ``found`` was filled; it changes whenever an entry
        is added or removed.
    :ivar found: entries that could be one of these modules, and whether each is a directory.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.state: tuple[int, ...] | None = None
        self.found: dict[str, bool] = {}

    def look(self, path: str) -> dict[str, bool]:
        """The entries that could be one of the modules, now."""
        found = {}
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                # Module names have no dot, so the stem alone rules out most entries.
                stem, dot, rest = name.partition(".")
                if stem in self.names and (not dot or f".{rest}" in _SUFFIXES):
                    found[name] = not dot and entry.is_dir()
        return found


class Searches:
    """Which names were searched for in which directories, and what was there.

    A module that was not found may have been added since. One that was found may now be shadowed by
    another, in a directory that is searched earlier or in the same one. Other files do not matter:
    in a project's own directory they come and go in every run.
    """

    def __init__(self) -> None:
        self._directories: dict[str, _Directory] = {}
        self._searches: list[tuple[str, tuple[object, ...]]] = []
        self._known: set[str] = set()

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what is searched for inside the block, whether or not it is found."""
        finder: Any = _Notice(self._searches)
        sys.meta_path.insert(0, finder)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):
                sys.meta_path.remove(finder)

    def take(self) -> list[str]:
        """Record what is in the directories that have been searched since the last call.

        :returns: files that a search found or could have found; changes to them matter, too.
        """
        searches, self._searches[:] = list(self._searches), ()
        if not self._known:
            searches += [(name, tuple(sys.path)) for name in _LOOKED_FOR_AT_START]
        searches += [
            (name, tuple(sys.path))
            for name, module in list(sys.modules.items())
            if "." not in name and name not in self._known and _is_of_a_file(module)
        ]
        touched: dict[str, _Directory] = {}
        for name, path in searches:
            self._known.add(name)
            tail = name.rpartition(".")[2]
            for folder in _searched(name, path):
                directory = self._directories.setdefault(folder, _Directory())
                directory.names.add(tail)
                touched[folder] = directory
        files = []
        todo = list(touched.items())
        for folder, directory in todo:
            directory.state = identity(folder)
            directory.found = directory.look(folder)
            if not directory.found and directory.state is not None and os.path.isfile(folder):
                files.append(folder)  # a ZIP file
            for entry, is_directory in directory.found.items():
                path_of = os.path.join(folder, entry)
                if not is_directory:
                    files.append(path_of)
                elif "__init__" not in (below := self._below(path_of)).names:
                    # An __init__ file would turn a namespace package into a regular one.
                    below.names.add("__init__")
                    todo.append((path_of, below))
        return files

    def _below(self, folder: str) -> _Directory:
        return self._directories.setdefault(folder, _Directory())

    def changed(self) -> str | None:
        """A path that was added or removed so that a search may now find something else, if any."""
        for folder, directory in self._directories.items():
            state = identity(folder)
            if state == directory.state:
                continue
            found = directory.look(folder)
            if found != directory.found:
                different = sorted(found.items() ^ directory.found.items())
                return os.path.join(folder, different[0][0])
            directory.state = state  # some other entry was added or removed
        return None


class _Notice:
    """A finder that finds nothing, and records what it was asked for."""

    def __init__(self, searches: list[tuple[str, tuple[object, ...]]]) -> None:
        self._searches = searches

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        with contextlib.suppress(TypeError):  # a __path__ may be anything
            self._searches.append((name, tuple(sys.path if path is None else path)))


def _is_of_a_file(module: object) -> bool:
    return isinstance(getattr(module, "__file__", None) or getattr(module, "__path__", None), str)


def _searched(name: str, path: tuple[object, ...]) -> list[str]:
    """The directories that were searched for a module: up to and including the one that has it.

    All of them if it was not found, or if it is a namespace package: each may hold a part of that.
    """
    folders = [os.path.abspath(entry) for entry in path if isinstance(entry, str)]
    file = getattr(sys.modules.get(name), "__file__", None)
    if isinstance(file, str):
        folder, base = os.path.split(file)
        if base.partition(".")[0] == "__init__" and name.rpartition(".")[2] != "__init__":
            folder = os.path.dirname(folder)
        if folder in folders:
            del folders[folders.index(folder) + 1 :]
    return folders
