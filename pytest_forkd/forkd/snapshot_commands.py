"""``pytest-forkd snapshot``: makes snapshots, shows and deletes those that daemons have."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_forkd.forkd.access import add_options
from pytest_forkd.forkd.build_commands import (
    add_build_options,
    check_tag,
    connect_all,
    find_snapshot,
    run_build,
)
from pytest_forkd.forkd.errors import ForkdError, NoSuchTag

if TYPE_CHECKING:
    from pytest_forkd.forkd.answers import Snapshot
    from pytest_forkd.forkd.built import Built, BuiltSnapshots

__all__ = ["add_snapshot_commands"]

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


def add_snapshot_commands(commands: Any) -> None:
    """Add ``snapshot`` to the commands of ``pytest-forkd``."""
    snapshot = commands.add_parser("snapshot", help="make, show and delete snapshots of forkd")
    inner = snapshot.add_subparsers(title="commands", metavar="COMMAND", required=True)
    build = inner.add_parser(
        "build",
        help="make the snapshot for a project, unless it is there already",
        description="Makes an image with Docker (dependencies, this package, the project) and a "
        "snapshot of a guest that has booted from it; to be run on the daemon's host. Does "
        "nothing if there is a snapshot for the project's dependencies as they are.",
    )
    add_build_options(build)
    add_options(build)
    build.set_defaults(run=run_build)
    listing = inner.add_parser("list", help="list the snapshots of all daemons")
    add_options(listing)
    listing.set_defaults(run=_list)
    info = inner.add_parser("info", help="tell what is known of a snapshot")
    info.add_argument("tag", metavar="TAG")
    add_options(info)
    info.set_defaults(run=_info)
    remove = inner.add_parser("rm", help="delete snapshots")
    remove.add_argument("tags", metavar="TAG", nargs="+")
    how = remove.add_mutually_exclusive_group()
    how.add_argument("--cascade", action="store_true", help="with all that depend on them")
    how.add_argument("--force", action="store_true", help="even if others depend on them")
    add_options(remove)
    remove.set_defaults(run=_remove)
    prune = inner.add_parser("prune", help="delete old snapshots that were made from here")
    prune.add_argument(
        "--older-than", metavar="AGE", required=True, help="such as 7d, 12h or 30m", type=_age
    )
    prune.add_argument("--print", action="store_true", help="only say what would be deleted")
    add_options(prune)
    prune.set_defaults(run=_prune)


# -- list, info --------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> int:
    from pytest_forkd.console.tables import duration, print_table
    from pytest_forkd.forkd.built import BuiltSnapshots

    known = {each.tag: each for each in BuiltSnapshots().all()}
    rows, failed = [], False
    for client in connect_all(options):
        with client:
            try:
                for each in client.snapshots():
                    made = known.get(each.tag)
                    rows.append(
                        [
                            each.tag,
                            duration(max(time.time() - each.created_at_unix, 0)),
                            _state(each),
                            made.root if made is not None else "-",
                            client.url,
                        ]
                    )
            except ForkdError as exc:
                print(f"pytest-forkd: {exc}", file=sys.stderr)
                failed = True
    if rows:
        print_table(["TAG", "AGE", "STATE", "PROJECT", "DAEMON"], rows)
    elif not failed:
        print("there is no snapshot")
    return int(failed)


def _state(snapshot: Snapshot) -> str:
    if not snapshot.bootable:
        return "not bootable"
    return snapshot.status if snapshot.branched_from is None else f"{snapshot.status}, branch"


def _info(options: argparse.Namespace) -> int:
    from pytest_forkd.forkd.built import BuiltSnapshots

    check_tag(options.tag)
    made = BuiltSnapshots().find(options.tag)
    found, missing = False, None
    for client in connect_all(options):
        with client:
            try:
                detail = client.snapshot_info(options.tag)
                listed = find_snapshot(client, options.tag)
            except NoSuchTag as exc:
                missing = exc
                continue
        found = True
        print(f"{detail.tag} at {client.url}")
        if detail.created_at_unix is not None:
            print(f"  made        {_date(detail.created_at_unix)}")
        if listed is not None:
            print(f"  state       {_state(listed)}")
            if listed.warning:
                print(f"  warning     {listed.warning}")
        print(f"  memory      {detail.memory_bytes / 1e6:.0f} MB on disk")
        print(f"  depends on  {' '.join(detail.ancestors) or 'none'}")
        print(f"  needed by   {' '.join(detail.dependents) or 'none'}")
        _print_built(made)
    if not found and missing is not None:
        raise missing
    return 0


def _print_built(made: Built | None) -> None:
    from pytest_forkd.forkd.built import plan_for

    if made is None:
        return
    print(f"  project     {made.root}")
    print(f"  fingerprint {made.fingerprint}")
    try:
        now = plan_for(made.root, made.wishes).fingerprint
    except ForkdError as exc:
        print(f"  stale       {exc}")
        return
    print("  stale       " + ("no" if now == made.fingerprint else "yes: the project has changed"))


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


# -- rm, prune ---------------------------------------------------------------------------------


def _remove(options: argparse.Namespace) -> int:
    from pytest_forkd.forkd.built import BuiltSnapshots

    built = BuiltSnapshots()
    for tag in options.tags:
        check_tag(tag)
    clients = connect_all(options)
    failed = False
    for tag in options.tags:
        removed = 0
        for client in clients:
            try:
                if client.delete_snapshot(tag, cascade=options.cascade, force=options.force):
                    removed += 1
                    print(f"{tag} at {client.url} is deleted")
            except ForkdError as exc:
                print(f"pytest-forkd: {tag} at {client.url}: {exc}", file=sys.stderr)
                failed = True
        if removed:
            _forget(built, tag)
        elif not failed:
            print(f"pytest-forkd: there is no snapshot {tag}", file=sys.stderr)
            failed = True
    for client in clients:
        client.close()
    return int(failed)


def _prune(options: argparse.Namespace) -> int:
    from pytest_forkd.forkd.built import BuiltSnapshots

    built = BuiltSnapshots()
    mine = {each.tag: each for each in built.all()}
    latest = {each.root: each.tag for each in built.all()}  # the list is sorted by time
    failed, count = False, 0
    for client in connect_all(options):
        with client:
            try:
                used = {each.snapshot_tag for each in client.sandboxes()}
                for each in client.snapshots():
                    age = time.time() - each.created_at_unix
                    if each.tag not in mine or age < options.older_than:
                        continue
                    if each.tag in used:
                        print(f"{each.tag} at {client.url} is in use; kept")
                        continue
                    if latest.get(mine[each.tag].root) == each.tag:
                        print(f"{each.tag} at {client.url} is its project's latest; kept")
                        continue
                    count += 1
                    if options.print:
                        print(f"{each.tag} at {client.url} would be deleted")
                        continue
                    client.delete_snapshot(each.tag)
                    _forget(built, each.tag)
                    print(f"{each.tag} at {client.url} is deleted")
            except ForkdError as exc:
                print(f"pytest-forkd: {exc}", file=sys.stderr)
                failed = True
    if not count and not failed:
        print("no snapshot that was made from here is older than that, and not needed")
    return int(failed)


def _forget(built: BuiltSnapshots, tag: str) -> None:
    """Remove a snapshot from the list, and the file system that forkd caches for its image."""
    made = built.find(tag)
    built.remove(tag)
    if made is None or not made.image:
        return
    cache = Path(os.environ.get("FORKD_RUN_CACHE") or "/var/cache/forkd")
    name = "".join(c if c.isalnum() else "-" for c in made.image).strip("-")
    try:
        (cache / f"{name}.ext4").unlink(missing_ok=True)
    except OSError as exc:
        print(f"pytest-forkd: {exc.filename} is left: {exc.strerror}", file=sys.stderr)


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d+)([mhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age such as 7d, 12h or 30m")
    return float(match[1]) * _UNITS[match[2]]
