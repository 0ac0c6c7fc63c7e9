"""What a fresh worker does first, to stop sharing what it must not share with other workers.

Forks share the *offsets* of open files, the state of random generators and the handlers that run at
exit; a fresh interpreter would have its own. Sources: fork(2) and the modules named below.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
from pathlib import Path
from typing import Any

import pytest

from pytest_forkd.compat.pytest import (
    capture_files,
    faulthandler_fd,
    global_capture,
    renew_global_capture,
    set_basetemp,
)

__all__ = [
    "CrashFiles",
    "capture_fds",
    "own_basetemp",
    "restart_capture",
    "write_into",
]


class CrashFiles:
    """Unnamed files that hold a worker's last output and crash dump, to be read after it has died.

    Made by the collector before the fork. The worker writes to them, through pytest's capture and
    through faulthandler; the collector reads them with ``pread``, which leaves the shared offset
    alone.
    """

    #: Bytes of each stream that are read, from its end.
    LIMIT = 256 * 1024

    def __init__(self) -> None:
        self.dump, self.out, self.err, self._note = (_nameless_file() for _ in range(4))

    def note(self, path: str) -> None:
        """Record which file is being imported; an empty ``path`` means none."""
        os.pwrite(self._note, os.fsencode(path) + b"\0", 0)

    def read(self) -> dict[str, str]:
        """What the process left: ``dump``, ``out``, ``err``, and the path it was ``importing``."""
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
    capturing = global_capture(config)
    for capture in (capturing.in_, capturing.out, capturing.err) if capturing else ():
        with contextlib.suppress(AttributeError, OSError, ValueError):
            fds.append(capture.tmpfile.fileno())
        fds.append(getattr(capture, "targetfd_save", -1))
    stderr = faulthandler_fd(config)
    return fds if stderr is None else [*fds, stderr]


def restart_capture(config: pytest.Config, files: CrashFiles) -> None:
    """Give pytest's global capture files of its own, and let faulthandler write to ``files``.

    Call it where capture is suspended, as it is in ``pytest_runtestloop``.
    """
    if global_capture(config) is None:
        write_into(config, files)
    else:
        renew_global_capture(config, lambda: write_into(config, files))


def write_into(config: pytest.Config, files: CrashFiles) -> None:
    """Make descriptor-level capture and faulthandler write to files that the collector reads."""
    capturing = global_capture(config)
    if capturing is not None:
        for (file, target), fd in zip(
            capture_files(capturing), (files.out, files.err), strict=False
        ):
            os.dup2(fd, file.fileno(), inheritable=False)
            if target is not None:
                os.dup2(fd, target)
    if faulthandler.is_enabled():
        faulthandler.enable(file=files.dump)


def own_basetemp(config: pytest.Config, basetemp: str | None) -> None:
    """Point ``tmp_path_factory`` at the worker's own directory.

    :param basetemp: a directory below the controller's; ``None`` where tmp_path is disabled.
    """
    factory: Any = getattr(config, "_tmp_path_factory", None)
    config.option.basetemp = basetemp
    if factory is not None and basetemp is not None:
        set_basetemp(factory, Path(os.path.abspath(basetemp)))
