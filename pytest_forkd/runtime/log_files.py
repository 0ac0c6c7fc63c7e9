"""Log files that several processes of a run write to: the controller's and its workers'."""

from __future__ import annotations

import contextlib
import logging

from pytest_forkd.compat.cpython import logging_handlers, reopened

__all__ = ["log_handlers", "reopen_log_files"]


def log_handlers() -> list[logging.FileHandler]:
    """Every handler that has a log file open, in creation order."""
    return [
        handler
        for handler in logging_handlers()
        if isinstance(handler, logging.FileHandler) and handler.stream is not None
    ]


def reopen_log_files() -> None:
    """Reopen each log file for appending, so that processes do not share file offsets."""
    for handler in log_handlers():
        with contextlib.suppress(OSError, ValueError):
            handler.acquire()
            try:
                if handler.stream is not None:
                    handler.stream.close()
                handler.mode = "a"
                handler.stream = reopened(handler)
            finally:
                handler.release()
