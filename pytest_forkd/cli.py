"""The pytest-forkd command."""

from __future__ import annotations

import argparse
import sys

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    :param argv: its arguments; those of the process if left out.
    :returns: the exit status.
    """
    from pytest_forkd import __version__

    parser = argparse.ArgumentParser(prog="pytest-forkd", description=__doc__)
    parser.add_argument("--version", action="version", version=f"pytest-forkd {__version__}")
    parser.parse_args(argv)
    parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
