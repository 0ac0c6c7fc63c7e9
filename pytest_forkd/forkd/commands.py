"""The commands of ``pytest-forkd`` that are about forkd daemons.

Parsing a command line needs no httpx; what a command does is imported when it is run.
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
    doctor = commands.add_parser(
        "doctor", help="look at all that a run in virtual machines needs, and say what to do"
    )
    doctor.add_argument(
        "--backend",
        choices=("forkd", "qemu"),
        default="forkd",
        help="the backend that is to be used (default: forkd); all options below are forkd's",
    )
    add_options(doctor)
    doctor.add_argument("--tag", help="the snapshot; by default that of the project")
    doctor.add_argument("--project", default=".", metavar="DIR", help="a directory of the project")
    doctor.add_argument("--no-netns", action="store_true", help="as with --no-forkd-netns")
    doctor.add_argument("--no-boot", action="store_true", help="restore no guest to look into it")
    doctor.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from pytest_forkd.console.checks import show

    if options.backend == "qemu":
        from pytest_forkd.qemu import doctor as diagnosis

        return show(diagnosis.examine())
    from pytest_forkd.forkd.doctor import Question, examine

    return show(
        examine(
            Question(
                urls=options.url,
                token_file=options.token_file,
                ca=options.ca,
                tag=options.tag,
                project=options.project,
                netns=not options.no_netns,
                boot=not options.no_boot,
            )
        )
    )


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
