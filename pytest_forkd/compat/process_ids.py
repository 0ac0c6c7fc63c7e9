"""Objects that remember the process they were made in, and are to belong to a fork of it instead.

A lock that a test module makes when it is imported belongs to that worker under xdist. Here it was
made before the fork, by a process that the suite has nothing to do with. Libraries look at the
process id to tell inherited objects apart: filelock refuses to lock, and multiprocessing to start a
process. The libraries' own names are theirs: what is not recognised is left alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["handed_down"]

#: Where filelock keeps what it resets in a fork: in 4.3, and from 3.30 on. Before that, no lock but
#: its ``SoftReadWriteLock`` knew of forks.
_FILELOCK_MODULES = ("filelock._core._fork", "filelock._api")
_FILELOCK_REGISTRIES = ("_FORK_OBJECTS", "_FORK_CLASSES")
#: The attributes in which filelock remembers a process id.
_FILELOCK_PIDS = ("_creator_pid", "_instances_pid")


@contextlib.contextmanager
def handed_down() -> Iterator[None]:
    """Around a fork of ours: in the fork, what nobody holds is as if it had been made there."""
    maker = os.getpid()
    registries = _filelock_registries()
    kept = [_own(registry, maker) for registry in registries]
    # Not seen, not reset: a reset also takes singletons out of their registry.
    for registry, entries in zip(registries, kept, strict=True):
        for key in entries:
            del registry[key]
    try:
        yield
    finally:
        for registry, entries in zip(registries, kept, strict=True):
            registry.update(entries)
        if os.getpid() != maker:
            _adopt_locks(kept)
            _adopt_processes(maker)


def _filelock_registries() -> list[Any]:
    for name in _FILELOCK_MODULES:
        module = vars(sys.modules[name]) if name in sys.modules else {}
        if module.get("_OWNED_DESCRIPTORS"):
            return []  # a lock is held; filelock closes its descriptor in the fork and says so
        if all(registry in module for registry in _FILELOCK_REGISTRIES):
            return [module[registry] for registry in _FILELOCK_REGISTRIES]
    return []


def _own(registry: Any, maker: int) -> dict[Any, Any]:
    """The locks of a registry that ``maker`` has made, and the classes of locks."""
    return {
        key: value
        for key, value in registry.items()
        if isinstance(value, type) or getattr(value, "_creator_pid", None) == maker
    }


def _adopt_locks(kept: list[dict[Any, Any]]) -> None:
    for entries in kept:
        for value in entries.values():
            for name in _FILELOCK_PIDS:
                if name in vars(value):
                    setattr(value, name, os.getpid())


def _adopt_processes(maker: int) -> None:
    """Let ``multiprocessing.Process`` objects that have not been started be started here.

    One that runs is a child of ``maker`` and of nobody else.
    """
    module = sys.modules.get("multiprocessing.process")
    for process in list(getattr(module, "_dangling", ())):
        if process._popen is None and process._parent_pid == maker:
            process._parent_pid = os.getpid()
