"""Limits of the operating system: checks that a run can stay below them, and names the one hit."""

from __future__ import annotations

import errno
import os
import resource

import pytest

__all__ = ["check_open_files", "which_limit"]

#: Descriptors that a collector has open for itself, and for each of its workers: channel and claims
#: until the worker is forked, and the crash files.
_OPEN_FILES = 20
_OPEN_FILES_PER_WORKER = 5


def check_open_files(workers: int) -> None:
    """Refuse a run with too many workers for the limit of open files.

    :raises pytest.UsageError: with the limit, and the number that is needed.
    """
    needed = _OPEN_FILES + _OPEN_FILES_PER_WORKER * workers
    limit = _open_files_limit()
    if limit is not None and limit < needed:
        count = "1 worker needs" if workers == 1 else f"{workers} workers need"
        raise pytest.UsageError(
            f"pytest-forkd: {count} about {needed} open files, and the limit is {limit} "
            "(RLIMIT_NOFILE).\nRaise it with 'ulimit -n', or use fewer workers."
        )


def which_limit(error: str) -> str:
    """A text to append to an error message: the limit that was reached, or nothing.

    :param error: the message, which contains the text of ``os.strerror``.
    """
    if os.strerror(errno.EMFILE) in error:
        limit = _open_files_limit()
        return "" if limit is None else f"; the limit is {limit} (RLIMIT_NOFILE, see 'ulimit -n')"
    if os.strerror(errno.EAGAIN) in error:
        return "; no more processes are allowed (RLIMIT_NPROC, see 'ulimit -u', or the cgroup's)"
    return ""


def _open_files_limit() -> int | None:
    limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if limit == resource.RLIM_INFINITY else limit
