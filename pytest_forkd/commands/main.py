"""The pytest-forkd command: kept parents, and what forkd daemons have and keep for us."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable

from pytest_forkd.commands.doctor import add_doctor_command
from pytest_forkd.commands.kept_parents import add_parent_commands
from pytest_forkd.forkd.commands import add_commands
from pytest_forkd.forkd.errors import ForkdError
from pytest_forkd.parent.kept.store import StoreError

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    :param argv: its arguments; those of the process if left out.
    :returns: the exit status: 1 if it could not do all that it was asked for.
    """
    from pytest_forkd import __version__
    from pytest_forkd.qemu.commands import add_image_commands

    parser = argparse.ArgumentParser(prog="pytest-forkd", description=__doc__)
    parser.add_argument("--version", action="version", version=f"pytest-forkd {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    add_parent_commands(commands)
    add_commands(commands)
    add_doctor_command(commands)
    add_image_commands(commands)
    options = parser.parse_args(argv)
    if options.run is None:
        parser.print_help()
        return 0
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except BaseException as exc:
        if _is_interruption(exc):
            print("pytest-forkd: interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        if isinstance(exc, (ForkdError, StoreError)):
            print(f"pytest-forkd: {exc}", file=sys.stderr)
            return 1
        if isinstance(exc, ModuleNotFoundError) and exc.name == "httpx":
            print(
                "pytest-forkd: this needs httpx; install it with: "
                "python -m pip install 'pytest-forkd[forkd]'",
                file=sys.stderr,
            )
            return 1
        raise


def _is_interruption(exc: BaseException) -> bool:
    """Whether an exception is Ctrl-C, or a consequence of it.

    An exception in a library's clean-up replaces ``KeyboardInterrupt``: closing a half-written
    archive raises ``ValueError``.
    """
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__context__
    return cause is not None


if __name__ == "__main__":
    sys.exit(main())
