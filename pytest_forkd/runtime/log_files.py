"""Log files that several processes of a run write to: the controller's and its workers'."""

from __future__ import annotations

import contextlib
import logging

__all__ = ["log_handlers", "reopen_log_files"]


def log_handlers() -> list[logging.FileHandler]:
    """Every handler that has a log file open, in creation order."""
    found = []
    for reference in list(logging._handlerList):  # type: ignore[attr-defined]
        handler = reference() if callable(reference) else reference
        if isinstance(handler, logging.FileHandler) and handler.stream is not None:
            found.append(handler)
    return found


def reopen_log_files() -> None:
    """Give every log file handler an offset of its own, at the end of its file."""
    for handler in log_handlers():
        with contextlib.suppress(OSError, ValueError):
            handler.acquire()
            try:
                if handler.stream is not None:
                    handler.stream.close()
                handler.mode = "a"
                handler.stream = handler._open()
            finally:
                handler.release()
