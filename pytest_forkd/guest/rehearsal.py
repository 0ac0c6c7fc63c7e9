"""Runs a tiny suite in a fork before a guest is made a snapshot of.

What comes first is slow in a guest: files are read from an image, and plugins that pytest rewrites
are compiled. A clone has all that in its memory, if it was done once before.
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

#: Seconds for the fork to be done, in emulation.
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
#: Bytes of names of modules.
_MAX_NAMES = 1 << 20
#: Modules that do something when they are imported.
_NOT_IMPORTED = frozenset({"antigravity", "idlelib", "readline", "rlcompleter", "this", "tkinter"})


def rehearse() -> None:
    """Run the suite, and import here what that has imported of the standard library and pytest.

    A plugin that does not like it, whatever it does, does it in the fork.
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
    """What the fork says, until it is done or takes too long."""
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
