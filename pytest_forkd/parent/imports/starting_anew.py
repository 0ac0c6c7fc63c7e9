"""How a parent that has imported what it must not becomes one that has not: the same process, anew.

An import cannot be taken back, so the program is run again without that package. The process keeps
its id and its socket: whoever has connected waits, and is served.
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

#: After so many packages that must not be imported early, none is.
_MAX_SKIPPED = 8
#: As it was before anything was imported: some modules set variables, which belong to them.
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
    """The same for a parent that has served a run, and is at rest.

    Otherwise the next run would have to make another parent, and wait for all of its imports.

    :param plan: what to import, what was learnt since the start included.
    :param listener: what runs connect to.
    :param keep: seconds to stay without use.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it is read, and closed, by what is run
    plan.write(file.fileno())
    for each in (file, listener):
        os.set_inheritable(each.fileno(), True)
    options = (f"--plan-fd={file.fileno()}", f"--keep={keep}", f"--again={time.time_ns()}")
    start_anew(argv, plan, unsafe, options)
