"""What is private to CPython. Read in, and checked with, Python 3.10 to 3.13."""

from __future__ import annotations

import atexit
import logging
import subprocess
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

__all__ = [
    "WARNING_DETAILS",
    "forget_exit_handlers",
    "interpreter_options",
    "interpreter_xoptions",
    "logging_handlers",
    "reap_subprocesses",
    "reopened",
    "run_exit_handlers",
    "running_loop",
]

#: The names of a ``warnings.WarningMessage``'s fields.
WARNING_DETAILS: tuple[str, ...] = warnings.WarningMessage._WARNING_DETAILS  # type: ignore[attr-defined]


def interpreter_options() -> list[str]:
    """The options that this interpreter was started with, for another one."""
    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined, no-any-return]


def interpreter_xoptions() -> dict[str, Any]:
    """What ``-X`` has set."""
    return sys._xoptions


def reap_subprocesses() -> None:
    """Wait for children that have ended and that nobody has a reference to."""
    subprocess._cleanup()  # type: ignore[attr-defined]


def running_loop() -> object:
    """The event loop that runs in this thread, if :mod:`asyncio` is loaded."""
    return sys.modules["asyncio.events"]._get_running_loop()


def logging_handlers() -> Iterator[logging.Handler]:
    """Every handler of :mod:`logging` that exists, in creation order."""
    for reference in list(logging._handlerList):  # type: ignore[attr-defined]
        handler = reference() if callable(reference) else reference
        if handler is not None:
            yield handler


def reopened(handler: logging.FileHandler) -> Any:
    """The log file of a handler, opened once more."""
    return handler._open()


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
