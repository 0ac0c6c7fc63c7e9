"""Restarts a parent that has imported a package it must not have imported.

An import cannot be undone, so the process runs the program again with exec, without that package.
It keeps its id and its listening socket, so controllers that have connected are served afterwards.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from typing import NoReturn

from pytest_forkd.parent.imports.preloading import Unsafe
from pytest_forkd.parent.plan import Plan

__all__ = ["start_again", "start_anew"]

#: If more packages than this must not be imported early, no package is.
_MAX_SKIPPED = 8
#: The environment before any import: modules may set variables, which must not survive a restart.
_ENVIRON = dict(os.environ)


def start_anew(argv: list[str], plan: Plan, unsafe: Unsafe, more: tuple[str, ...] = ()) -> NoReturn:
    """Run this program again, in the same process, without the package that cannot be preloaded.

    :param argv: its command line.
    :param more: what to add to it.
    """
    skip = {**plan.skip, unsafe.package: str(unsafe)}
    if len(skip) > _MAX_SKIPPED:
        skip = {"*": f"none is imported early, since too many cannot be: {', '.join(skip)}"}
    rest = [arg for arg in argv if not arg.startswith("--skip=")]
    main_file = sys.orig_argv[: len(sys.orig_argv) - len(argv)]
    os.execve(  # noqa: S606 - no shell is wanted
        sys.executable, [*main_file, *rest, *more, f"--skip={json.dumps(skip)}"], _ENVIRON
    )


def start_again(
    argv: list[str], plan: Plan, unsafe: Unsafe, listener: socket.socket, keep: float
) -> NoReturn:
    """Do the same in an idle parent that has served a run.

    Otherwise the next run would have to make another parent, and wait for all of its imports.

    :param plan: what to import, including what was learnt since the start.
    :param listener: the socket that runs connect to.
    :param keep: seconds to stay without use.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the program run by exec reads and closes it
    plan.write(file.fileno())
    for each in (file, listener):
        os.set_inheritable(each.fileno(), True)
    options = (f"--plan-fd={file.fileno()}", f"--keep={keep}", f"--again={time.time_ns()}")
    start_anew(argv, plan, unsafe, options)
