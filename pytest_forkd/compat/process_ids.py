"""Hands objects that remember the pid of their process over to a fork.

Under xdist, a lock that a test module makes when it is imported belongs to the worker. Here it is
made before the fork, in another process. Libraries compare pids to recognise inherited objects: in
a worker, filelock would refuse to lock, and multiprocessing to start a process. The names used here
are private to the libraries; where they are missing, nothing is done.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["handed_down"]

#: Where filelock registers what it resets in a fork: in 4.3, and from 3.30 on. Before that, only
#: ``SoftReadWriteLock`` handled forks.
_FILELOCK_MODULES = ("filelock._core._fork", "filelock._api")
_FILELOCK_REGISTRIES = ("_FORK_OBJECTS", "_FORK_CLASSES")
#: The attributes in which filelock remembers a process id.
_FILELOCK_PIDS = ("_creator_pid", "_instances_pid")


@contextlib.contextmanager
def handed_down() -> Iterator[None]:
    """Use this around a fork: objects that are not in use then belong to the fork as well."""
    maker = os.getpid()
    registries = _filelock_registries()
    kept = [_own(registry, maker) for registry in registries]
    # Hide them from filelock's reset in the fork, which would also drop singletons.
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
            return []  # a lock is held: leave it to filelock, which closes it in the fork and warns
        if all(registry in module for registry in _FILELOCK_REGISTRIES):
            return [module[registry] for registry in _FILELOCK_REGISTRIES]
    return []


def _own(registry: Any, maker: int) -> dict[Any, Any]:
    """The locks in a registry that process ``maker`` has made, and the classes of locks."""
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
    """Allow ``multiprocessing.Process`` objects that have not been started to be started here.

    Those that have been started remain children of ``maker``.
    """
    module = sys.modules.get("multiprocessing.process")
    for process in list(getattr(module, "_dangling", ())):
        if process._popen is None and process._parent_pid == maker:
            process._parent_pid = os.getpid()
