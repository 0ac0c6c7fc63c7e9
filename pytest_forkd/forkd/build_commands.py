"""``pytest-forkd snapshot build``."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from typing import TYPE_CHECKING

from pytest_forkd.forkd.errors import ForkdError, Unreachable

if TYPE_CHECKING:
    from pytest_forkd.forkd.answers import Snapshot
    from pytest_forkd.forkd.building import Machine
    from pytest_forkd.forkd.client import Client

__all__ = ["add_build_options", "check_tag", "connect_all", "find_snapshot", "run_build"]

#: Options of ``build`` that say what is in the image, by their names in ``Wishes``.
_WISHES = (
    "image",
    "dockerfile",
    "requirements",
    "extras",
    "groups",
    "preload",
    "tests",
    "writable",
)


def add_build_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is made, and how."""
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--image", help="the image to start with; by default python:X.Y-slim")
    start.add_argument("--dockerfile", metavar="FILE", help="make the image to start with by this")
    several = {
        "--requirements": ("FILE", "install these; by default requirements.txt, if there is one"),
        "--extra": ("NAME", "install this extra of the project"),
        "--group": ("NAME", "install this dependency group of the project"),
        "--preload": ("MODULE", "have the parent import this module"),
        "--tests": ("PATH", "have the parent import what test files there import"),
        "--writable": ("DIR", "let tests write to this directory of a guest"),
    }
    for name, (metavar, text) in several.items():
        parser.add_argument(
            name,
            dest=name.strip("-") + ("s" if name in ("--extra", "--group") else ""),
            action="append",
            metavar=metavar,
            help=f"{text}; can be given several times",
        )
    parser.add_argument("--tag", help="the snapshot's tag; by default one for what is in it")
    parser.add_argument(
        "--project", default=".", metavar="DIR", help="a directory of the project (.)"
    )
    numbers = {
        "--mem-size-mib": (1024, "memory of a guest, in MiB"),
        "--size-mib": (4096, "file system of a guest, in MiB"),
        "--boot-wait-secs": (30, "seconds for a guest to boot and to import"),
    }
    for name, (number, text) in numbers.items():
        parser.add_argument(
            name, type=_positive, default=number, metavar="N", help=f"{text} ({number})"
        )
    parser.add_argument(
        "--docker-arg", action="append", default=[], metavar="ARG", help="for docker build"
    )
    parser.add_argument(
        "--forkd-arg", action="append", default=[], metavar="ARG", help="for forkd from-image"
    )
    parser.add_argument(
        "--data-home",
        metavar="DIR",
        help="where the daemon's 'forkd/snapshots' is, if forkd would not know: its XDG_DATA_HOME",
    )
    parser.add_argument("--sudo", action="store_true", help="run forkd with sudo -E")
    parser.add_argument(
        "--no-check", action="store_true", help="do not restore a guest to see whether it works"
    )
    parser.add_argument("--force", action="store_true", help="make it anew, even if it is there")
    parser.add_argument("--print", action="store_true", help="only say what would be run")


def run_build(options: argparse.Namespace) -> int:
    """Make the snapshot for a project, unless it exists.

    :returns: the exit status.
    :raises ForkdError: if it cannot be made.
    """
    # Handle SIGTERM like Ctrl-C, so that nothing half-made is left.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _build(options)
    finally:
        signal.signal(signal.SIGTERM, before)


def _build(options: argparse.Namespace) -> int:
    from pytest_forkd.forkd.building import build, commands, locked
    from pytest_forkd.forkd.built import BuiltSnapshots, plan_for
    from pytest_forkd.forkd.recipe import default_tag

    machine = _machine(options)
    given = {name: getattr(options, name) for name in _WISHES if getattr(options, name)}
    for name in ("requirements", "tests"):
        # Command line paths are relative to the working directory, the recipe's to the project.
        given[name] = [os.path.abspath(each) for each in given.get(name, ())]
    if options.dockerfile:
        given["dockerfile"] = os.path.abspath(options.dockerfile)
    recipe = plan_for(options.project, given)
    tag = options.tag or default_tag(recipe)
    check_tag(tag)
    if options.print:
        from pytest_forkd.forkd.building import base_image
        from pytest_forkd.forkd.recipe import dockerfile, install_script
        from pytest_forkd.forkd.wheel import wheel_name

        image = f"pytest-forkd:{recipe.fingerprint}"
        print(f"# fingerprint {recipe.fingerprint}, tag {tag}")
        for command in commands(recipe, machine, tag, image):
            print(shlex.join(command))
        print("\n# Dockerfile, the first file of what docker build reads:")
        print(dockerfile(recipe, base_image(recipe, image)), end="")
        print("\n# /etc/pytest-forkd/install.sh:")
        print(install_script(recipe, wheel_name()), end="")
        return 0
    built = BuiltSnapshots()
    with _one_client(options) as client, locked(tag, built.directory):
        known = built.find(tag)
        there = find_snapshot(client, tag)
        if there is not None and not options.force:
            if not there.bootable:
                reason = there.warning or "it is not bootable"
                raise ForkdError(f"snapshot {tag} is of no use ({reason}); --force makes it anew.")
            if tag != default_tag(recipe) and (
                known is None or known.fingerprint != recipe.fingerprint
            ):
                raise ForkdError(
                    f"there is a snapshot {tag} at {client.url} that was made of something else; "
                    "--force makes it anew."
                )
            print(f"snapshot {tag} is there already")
            if known is None:
                from pytest_forkd.forkd.built import Built

                built.add(
                    Built(tag, recipe.root, recipe.fingerprint, "", time.time(), wishes=given)
                )
            return 0
        if there is not None:
            client.delete_snapshot(tag)
        build(recipe, machine, tag, given, built)
        return _report(client, tag, options)


def _machine(options: argparse.Namespace) -> Machine:
    from pytest_forkd.forkd.building import Machine

    return Machine(
        mem_size_mib=options.mem_size_mib,
        size_mib=options.size_mib,
        boot_wait_secs=options.boot_wait_secs,
        docker_args=tuple(options.docker_arg),
        forkd_args=tuple(options.forkd_arg),
        data_home=options.data_home,
        sudo=options.sudo,
    )


def _one_client(options: argparse.Namespace) -> Client:
    """The client for the daemon on this host, the only one that a snapshot is made on."""
    clients = connect_all(options)
    for each in clients[1:]:
        each.close()
    if len(clients) > 1:
        clients[0].close()
        raise ForkdError(
            "a snapshot is made on the host of its daemon; give that one with --url, and run this "
            "on each host."
        )
    return clients[0]


def _report(client: Client, tag: str, options: argparse.Namespace) -> int:
    """Print the result of a build, and check whether its guests work.

    :returns: the exit status.
    """
    from pytest_forkd.console.checks import show
    from pytest_forkd.forkd.guest_doctor import Question, look_into_guest

    try:
        found = next((each for each in client.snapshots() if each.tag == tag), None)
    except Unreachable:
        print(f"snapshot {tag} is made; start the daemon to use it")
        return 0
    if found is None:
        raise ForkdError(
            f"forkd has made {tag}, but the daemon at {client.url} does not list it.\n"
            "forkd puts snapshots below XDG_DATA_HOME, else below ~/.local/share of who runs it; "
            "the daemon looks in its --snapshot-root, else in the same places of its own. Give "
            "--data-home DIR, so that DIR/forkd/snapshots is where the daemon looks."
        )
    if not found.bootable:
        raise ForkdError(f"snapshot {tag} is made, but of no use: {found.warning or 'no reason'}.")
    print(f"snapshot {tag} is made", flush=True)
    if options.no_check:
        return 0
    return show(
        look_into_guest(Question(token_file=options.token_file, ca=options.ca), client, tag)
    )


def find_snapshot(client: Client, tag: str) -> Snapshot | None:
    """The daemon's snapshot with a tag; ``None``, with a message, also if no daemon answers."""
    try:
        return next((each for each in client.snapshots() if each.tag == tag), None)
    except Unreachable as exc:
        print(f"pytest-forkd: {exc}\nThe snapshot is made all the same.", file=sys.stderr)
        return None


def connect_all(options: argparse.Namespace) -> list[Client]:
    """A client for each daemon that the options name.

    :raises ForkdError: if a URL, the token or the certificates cannot be used.
    """
    from pytest_forkd.forkd.access import read_token, read_urls
    from pytest_forkd.forkd.client import Client

    token = read_token(options.token_file, os.environ)
    return [Client(url, token, options.ca) for url in read_urls(options.url, "--url", os.environ)]


def check_tag(tag: str) -> None:
    """Make sure that a tag is valid.

    :raises ForkdError: if it is not.
    """
    from pytest_forkd.forkd.answers import TAG

    if not TAG.fullmatch(tag):
        raise ForkdError(
            f"{tag!r} is no tag: letters, digits, - and _ are allowed, 64 characters at most."
        )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number
