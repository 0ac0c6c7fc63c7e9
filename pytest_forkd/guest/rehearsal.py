"""Runs a tiny suite in a fork before a snapshot of the guest is made.

A first run is slow in a guest: files are read from an image, and plugins that pytest rewrites are
compiled. If that is done before the snapshot, clones have the results in memory.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import sys
import tempfile
from typing import NoReturn

from pytest_forkd.parent import processes

__all__ = ["rehearse"]

#: Seconds for the fork to finish, even on an emulated processor.
_LIMIT = 300.0
_TEST = """
import pytest

@pytest.fixture
def one(tmp_path, monkeypatch):
    return 1

@pytest.mark.parametrize("two", [2])
def test(one, two, capsys):
    assert one + 1 == two
"""
#: Bytes of module names to read from the fork.
_MAX_NAMES = 1 << 20
#: Modules that have side effects when they are imported.
_NOT_IMPORTED = frozenset({"antigravity", "idlelib", "readline", "rlcompleter", "this", "tkinter"})


def rehearse() -> None:
    """Run the suite in a fork, then import here the stdlib and pytest modules that it imported.

    A plugin that misbehaves can only harm the fork.
    """
    reader, writer = os.pipe()
    pid = processes.fork()
    if pid == 0:
        os.close(reader)
        _perform(writer)
    os.close(writer)
    with contextlib.suppress(ValueError):
        for name in json.loads(_read(reader) or "[]"):
            with contextlib.suppress(Exception, SystemExit):
                importlib.import_module(name)
    os.close(reader)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _read(fd: int) -> bytes:
    """All that the fork writes; empty if it takes too long or writes too much."""
    data = b""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while len(data) < _MAX_NAMES and poller.poll(_LIMIT * 1000):
        piece = os.read(fd, 65536)
        if not piece:
            return data
        data += piece
    return b""


def _perform(writer: int) -> NoReturn:
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nothing, fd)
        folder = tempfile.mkdtemp(prefix="rehearsal-")
        os.chdir(folder)
        with open("test_rehearsal.py", "w", encoding="ascii") as file:
            file.write(_TEST)
        before = set(sys.modules)
        import pytest

        pytest.main(["-q", "--rootdir=.", "-p", "no:cacheprovider", "--basetemp=temp"])
        names = [name for name in sys.modules if name not in before and _is_ours(name)]
        shutil.rmtree(folder, ignore_errors=True)
        data = json.dumps(names).encode("ascii")
        while data:
            data = data[os.write(writer, data) :]
    finally:
        os._exit(0)


def _is_ours(name: str) -> bool:
    top = name.partition(".")[0]
    if top in _NOT_IMPORTED:
        return False
    return top in sys.stdlib_module_names or top in ("_pytest", "pluggy")
