"""The commands of ``pytest-forkd`` that are about forkd daemons.

What a command does is imported when it runs, since parsing a command line must not need httpx.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from pytest_forkd.forkd.access import add_options
from pytest_forkd.forkd.snapshot_commands import add_snapshot_commands

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add the commands to those of ``pytest-forkd``.

    :param commands: what ``add_subparsers()`` has returned.
    """
    prune = commands.add_parser(
        "prune", help="delete what killed runs have left at forkd daemons, and nothing else"
    )
    add_options(prune, url=False)
    prune.add_argument(
        "--other-hosts",
        action="store_true",
        help="also what is on record of other machines, whose runs cannot be seen from here",
    )
    prune.set_defaults(run=_prune)
    add_snapshot_commands(commands)


def _prune(options: argparse.Namespace) -> int:
    from pytest_forkd.forkd.cleaning import connect_for, delete_recorded
    from pytest_forkd.forkd.records import Records

    records = Records()
    failed = False
    runs = records.all()
    if not runs:
        print("no run has left anything")
    for run in runs:
        what = f"run of {time.strftime('%Y-%m-%d %H:%M', time.localtime(run.started))} in {run.cwd}"
        if run.is_running():
            print(f"{what}: process {run.pid} is still running; left alone")
            continue
        if not run.is_local() and not options.other_hosts:
            host = run.host.partition(" ")[0]
            print(f"{what}: of another host ({host}); --other-hosts deletes it")
            continue
        connect = connect_for(run, options.token_file, options.ca)
        outcome = delete_recorded(records, run, connect)
        print(f"{what}: {outcome.deleted} deleted, {outcome.gone} had gone")
        for error in outcome.errors:
            print(f"pytest-forkd: {error}", file=sys.stderr)
            failed = True
    return int(failed)
