"""``pytest-forkd doctor``: checks everything that a run in virtual machines needs.

The checks are imported when the command runs, since parsing a command line must not need httpx.
"""

from __future__ import annotations

import argparse
from typing import Any

from pytest_forkd.console.checks import show
from pytest_forkd.forkd.access import add_options

__all__ = ["add_doctor_command"]


def add_doctor_command(commands: Any) -> None:
    """Add the command to those of ``pytest-forkd``.

    :param commands: what ``add_subparsers()`` has returned.
    """
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
    if options.backend == "qemu":
        from pytest_forkd.qemu import doctor as diagnosis

        return show(diagnosis.examine())
    from pytest_forkd.forkd.doctor import examine
    from pytest_forkd.forkd.guest_doctor import Question

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
