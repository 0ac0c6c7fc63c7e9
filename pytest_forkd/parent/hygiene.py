"""What a fresh worker does before anything else, so that it shares nothing it must not share.

Forks share the *offsets* of open files, the state of random generators and the handlers that run at
exit; a fresh interpreter would have its own. Sources: fork(2) and the modules named below.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import sys
import threading
import traceback
import weakref
from pathlib import Path
from typing import Any

import pytest

__all__ = [
    "CrashFiles",
    "capture_fds",
    "forget_exit_handlers",
    "own_basetemp",
    "restart_capture",
    "run_exit_handlers",
    "write_into",
]


class CrashFiles:
    """Nameless files for what can still be read after a worker died: its last output and dump.

    Made by the collector before the fork. The worker writes to them, through pytest's capture and
    through faulthandler; the collector reads them with ``pread``, which leaves the shared offset
    alone.
    """

    #: Bytes of output kept of each stream, from its end.
    LIMIT = 256 * 1024

    def __init__(self) -> None:
        self.dump, self.out, self.err, self._note = (_nameless_file() for _ in range(4))

    def note(self, path: str) -> None:
        """Note the file that is being imported; none if ``path`` is empty."""
        os.pwrite(self._note, os.fsencode(path) + b"\0", 0)

    def read(self) -> dict[str, str]:
        """What the process left: ``dump``, ``out``, ``err``; the file it was ``importing``."""
        importing = os.pread(self._note, 4 * 4096, 0).partition(b"\0")[0]
        return {
            "dump": _tail(self.dump),
            "out": _tail(self.out),
            "err": _tail(self.err),
            "importing": os.fsdecode(importing),
        }

    def close(self) -> None:
        """Close the files, which removes them."""
        for fd in (self.dump, self.out, self.err, self._note):
            os.close(fd)


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pytest-forkd-crash")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _tail(fd: int) -> str:
    size = os.fstat(fd).st_size
    start = max(0, size - CrashFiles.LIMIT)
    return os.pread(fd, size - start, start).decode("utf-8", "replace")


def capture_fds(config: pytest.Config) -> list[int]:
    """The descriptors that pytest's global capture and faulthandler plugin hold."""
    fds = []
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    capturing = manager._global_capturing if manager is not None else None
    for capture in (capturing.in_, capturing.out, capturing.err) if capturing else ():
        with contextlib.suppress(AttributeError, OSError, ValueError):
            fds.append(capture.tmpfile.fileno())
        fds.append(getattr(capture, "targetfd_save", -1))
    with contextlib.suppress(ImportError, KeyError):
        from _pytest.faulthandler import fault_handler_stderr_fd_key

        fds.append(config.stash[fault_handler_stderr_fd_key])
    return fds


def restart_capture(config: pytest.Config, files: CrashFiles) -> None:
    """Give pytest's global capture files of its own, and let faulthandler write to ``files``.

    Call it where capture is suspended, as it is in ``pytest_runtestloop``.
    """
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    if manager is not None and manager._global_capturing is not None:
        # Not stop_global_capturing(): that would print what the collector had captured, once more
        # in each worker.
        manager._global_capturing.stop_capturing()
        manager._global_capturing = None
        manager.start_global_capturing()
        write_into(config, files)
        manager.suspend_global_capture()
    else:
        write_into(config, files)


def write_into(config: pytest.Config, files: CrashFiles) -> None:
    """Let descriptor-level capture and faulthandler write where the collector can read."""
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    capturing = manager._global_capturing if manager is not None else None
    if capturing is not None:
        for capture, fd in ((capturing.out, files.out), (capturing.err, files.err)):
            if hasattr(capture, "targetfd_save"):
                os.dup2(fd, capture.tmpfile.fileno(), inheritable=False)
                if capture._state == "started":
                    os.dup2(fd, capture.targetfd)
    if faulthandler.is_enabled():
        faulthandler.enable(file=files.dump)


def own_basetemp(config: pytest.Config, basetemp: str | None) -> None:
    """Point ``tmp_path_factory`` at the worker's own directory.

    :param basetemp: a directory below the controller's; ``None`` where tmp_path is disabled.
    """
    factory: Any = getattr(config, "_tmp_path_factory", None)
    config.option.basetemp = basetemp
    if factory is not None and basetemp is not None:
        factory._given_basetemp = Path(os.path.abspath(basetemp))
        factory._basetemp = None


def forget_exit_handlers() -> None:
    """Leave exit handlers from before the fork to the collector, which runs each of them once.

    A directory that a test module made at import would otherwise be removed by the first worker
    that ends, and be missing in the others.
    """
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    # A finalizer that a test makes is to run at exit; weakref registers its hook only once.
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    logging = sys.modules.get("logging")
    if logging is not None:
        atexit.register(logging.shutdown)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._finalizer_registry.clear()
        atexit.register(util._exit_function)


def run_exit_handlers(*, join_threads: bool) -> None:
    """Do what the interpreter does before it ends, in its order; ``os._exit`` leaves it all out.

    First pools of threads and processes (``concurrent.futures``, joblib) are told to end, and
    threads that are no daemons are waited for. Only then comes what :mod:`atexit` knows:
    multiprocessing's handler waits for the processes of a pool, and would wait for one that nobody
    has told to end.

    :param join_threads: whether to wait for threads that belong to no pool. What would end them may
        be a fixture, which a collector never sets up.
    """
    try:
        if join_threads:
            threading._shutdown()  # type: ignore[attr-defined]
        else:
            for handler in reversed(threading._threading_atexits):  # type: ignore[attr-defined]
                handler()
    except BaseException:
        traceback.print_exc()  # and goes on, as the interpreter does
    atexit._run_exitfuncs()
