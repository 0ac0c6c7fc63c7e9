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
    """The options that this interpreter was started with, to start another one with them."""
    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined, no-any-return]


def interpreter_xoptions() -> dict[str, Any]:
    """What ``-X`` has set."""
    return sys._xoptions


def reap_subprocesses() -> None:
    """Reap children that have ended and whose ``Popen`` object is gone."""
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
    """Forget exit handlers from before the fork: the collector runs each of them once.

    Otherwise the first worker to end would remove, for example, a temporary directory that a test
    module made at import, while the other workers still need it.
    """
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    # weakref registers its exit hook only once. Let it do so again, for finalizers that tests make.
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    logging = sys.modules.get("logging")
    if logging is not None:
        atexit.register(logging.shutdown)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._finalizer_registry.clear()
        atexit.register(util._exit_function)


def run_exit_handlers(*, join_threads: bool) -> None:
    """Do what the interpreter does at exit, in the same order; ``os._exit()`` skips all of it.

    First, pools of threads and processes (``concurrent.futures``, joblib) are told to end, and
    non-daemon threads are joined. Handlers of :mod:`atexit` come after that: multiprocessing's
    waits for the processes of a pool, and would hang if the pool had not been told to end.

    :param join_threads: whether to wait for threads that belong to no pool. A collector must not:
        such a thread may be ended by a fixture, which a collector never sets up.
    """
    try:
        if join_threads:
            threading._shutdown()  # type: ignore[attr-defined]
        else:
            for handler in reversed(threading._threading_atexits):  # type: ignore[attr-defined]
                handler()
    except BaseException:
        traceback.print_exc()  # and continue, as the interpreter does
    atexit._run_exitfuncs()
