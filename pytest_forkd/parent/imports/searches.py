"""Where modules were looked for: to tell whether a search would find something else today."""

from __future__ import annotations

import contextlib
import importlib.machinery
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from pytest_forkd.runtime.file_stamps import identity

__all__ = ["Searches"]

#: Looked for by :mod:`site` while Python starts, on the whole path.
_LOOKED_FOR_AT_START = ("sitecustomize", "usercustomize")
_SUFFIXES = tuple(importlib.machinery.all_suffixes())


class _Directory:
    """One directory that was searched.

    :ivar names: the last parts of the modules' names that were looked for in it.
    :ivar state: of the directory itself, as long as nothing has appeared in it or gone.
    :ivar found: what it holds that could be one of these modules: whether it is a directory.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.state: tuple[int, ...] | None = None
        self.found: dict[str, bool] = {}

    def look(self, path: str) -> dict[str, bool]:
        """What is there now."""
        found = {}
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                # No name of a module has a dot; most entries are told by what is before theirs.
                stem, dot, rest = name.partition(".")
                if stem in self.names and (not dot or f".{rest}" in _SUFFIXES):
                    found[name] = not dot and entry.is_dir()
        return found


class Searches:
    """Which names were looked for in which directories, and what was there.

    A module that was looked for in vain may have come since, and one that was found may be hidden
    by another, in a directory that is searched earlier or in the same one. Other files may come and
    go: in a project's own directory they do in every run.
    """

    def __init__(self) -> None:
        self._directories: dict[str, _Directory] = {}
        self._searches: list[tuple[str, tuple[object, ...]]] = []
        self._known: set[str] = set()

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Take note of what is looked for meanwhile, found or not."""
        finder: Any = _Notice(self._searches)
        sys.meta_path.insert(0, finder)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):
                sys.meta_path.remove(finder)

    def take(self) -> list[str]:
        """Note what there is in the directories that have been searched since the last call.

        :returns: the files that a search has found, or could have: they are to be compared, too.
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
                    # A directory is one thing with an __init__ file, and another without.
                    below.names.add("__init__")
                    todo.append((path_of, below))
        return files

    def _below(self, folder: str) -> _Directory:
        return self._directories.setdefault(folder, _Directory())

    def changed(self) -> str | None:
        """A file or directory that has come or gone, so that a search may find something else."""
        for folder, directory in self._directories.items():
            state = identity(folder)
            if state == directory.state:
                continue
            found = directory.look(folder)
            if found != directory.found:
                different = sorted(found.items() ^ directory.found.items())
                return os.path.join(folder, different[0][0])
            directory.state = state  # something else has come or gone
        return None


class _Notice:
    """A finder that finds nothing, and notes what it was asked for."""

    def __init__(self, searches: list[tuple[str, tuple[object, ...]]]) -> None:
        self._searches = searches

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        with contextlib.suppress(TypeError):  # a __path__ may be anything
            self._searches.append((name, tuple(sys.path if path is None else path)))


def _is_of_a_file(module: object) -> bool:
    return isinstance(getattr(module, "__file__", None) or getattr(module, "__path__", None), str)


def _searched(name: str, path: tuple[object, ...]) -> list[str]:
    """The directories that were searched for a module: those before the one that has it, and it.

    All of them if it was not found, or if it is a namespace package, of which each may hold a part.
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
