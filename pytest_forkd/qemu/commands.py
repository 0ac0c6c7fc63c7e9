"""``pytest-forkd image``: manages what the qemu backend has built, or builds it in advance."""

from __future__ import annotations

import argparse
import re
import sys
import time
from typing import Any

from pytest_forkd.backends.base import BackendError
from pytest_forkd.console.tables import duration, print_table

__all__ = ["add_image_commands"]

#: By default, prune removes what has not been used for this long.
_PRUNE_AFTER = "30d"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def add_image_commands(commands: Any) -> None:
    """Add the command.

    :param commands: what ``add_subparsers()`` has returned.
    """
    image = commands.add_parser(
        "image", help="build, list and remove what the qemu backend boots and restores"
    )
    image.set_defaults(run=lambda options: image.print_help() or 0)
    actions = image.add_subparsers(title="commands", metavar="COMMAND")
    build = actions.add_parser(
        "build", help="build the image of this environment, unless there is one already"
    )
    build.add_argument("--kernel", metavar="FILE", help="the kernel to boot")
    build.add_argument(
        "--include",
        metavar="PATH|COMMAND",
        action="append",
        default=[],
        help="what the image is to hold, too; as in the ini value forkd_image_include",
    )
    build.set_defaults(run=_build)
    listing = actions.add_parser("list", help="list kernels, images and snapshots")
    listing.set_defaults(run=_list)
    remove = actions.add_parser("rm", help="remove some of them")
    remove.add_argument("names", metavar="NAME", nargs="+", help="a name, or how it begins")
    remove.set_defaults(run=_remove)
    prune = actions.add_parser("prune", help="remove those that have not been used for a while")
    prune.add_argument(
        "--older-than",
        metavar="TIME",
        type=_seconds,
        default=_seconds(_PRUNE_AFTER),
        help=f"since when, such as 12h, 7d (default: {_PRUNE_AFTER}); 0s for all",
    )
    prune.set_defaults(run=_prune)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time; give a number and a unit, such as 12h or 7d"
        )
    return float(match[1]) * _UNITS[match[2]]


def _build(options: argparse.Namespace) -> int:
    from pytest_forkd.qemu.image import build_image
    from pytest_forkd.qemu.kernel import find_kernel
    from pytest_forkd.qemu.progress import ProgressBar
    from pytest_forkd.qemu.store import ArtifactStore

    bar = ProgressBar()

    def progress(stage: str, part: float) -> None:
        bar.set(stage, part)
        bar.draw()

    store = ArtifactStore.find()
    try:
        kernel = find_kernel(store, options.kernel)
        image = build_image(store, kernel, options.include, progress=progress)
    except BackendError as exc:
        bar.end()
        print(f"pytest-forkd: {exc}", file=sys.stderr)
        return 4
    bar.end()
    print(f"{image.path} ({_size(image.size)}, kernel {kernel.release})")
    return 0


def _list(options: argparse.Namespace) -> int:
    from pytest_forkd.qemu.store import ArtifactStore

    entries = ArtifactStore.find().entries()
    if not entries:
        print("nothing has been built")
        return 0
    rows = [
        [
            entry.kind[:-1],
            entry.name,
            _size(entry.size),
            f"{duration(time.time() - entry.used)} ago",
            _what(entry.kind, entry.meta) or "-",
        ]
        for entry in entries
    ]
    print_table(["KIND", "NAME", "SIZE", "LAST USE", "WHAT"], rows)
    return 0


def _what(kind: str, meta: dict[str, Any]) -> str:
    if kind == "images":
        return f"Python {meta.get('python')} in {meta.get('prefix')}, kernel {meta.get('kernel')}"
    if kind == "snapshots":
        return f"{meta.get('project')}, {meta.get('memory')} MiB, {meta.get('accelerator')}"
    return ""


def _remove(options: argparse.Namespace) -> int:
    from pytest_forkd.qemu.store import ArtifactStore

    store = ArtifactStore.find()
    failures = 0
    for name in options.names:
        found = [entry for entry in store.entries() if entry.name.startswith(name)]
        exact = [entry for entry in found if entry.name == name]
        if len(found) != 1 and len(exact) != 1:
            reason = "names more than one" if found else "is nothing that was built"
            print(f"pytest-forkd: {name!r} {reason}", file=sys.stderr)
            failures += 1
            continue
        failures += not _remove_one(store, (exact or found)[0])
    return int(failures > 0)


def _prune(options: argparse.Namespace) -> int:
    from pytest_forkd.qemu.store import ArtifactStore

    store = ArtifactStore.find()
    store.sweep()
    failures = 0
    now = time.time()
    # Snapshots first: an image is in use as long as a snapshot of it is.
    for entry in reversed(store.entries()):
        if now - entry.used >= options.older_than and entry.path.exists():
            failures += not _remove_one(store, entry)
    return int(failures > 0)


def _remove_one(store: Any, entry: Any) -> bool:
    what = f"{entry.kind[:-1]} {entry.name}"
    size = entry.size
    try:
        removed: bool = store.remove(entry)
    except OSError as exc:
        print(f"pytest-forkd: {what} cannot be removed: {exc}", file=sys.stderr)
        return False
    if removed:
        print(f"removed {what} ({_size(size)})")
    else:
        print(f"pytest-forkd: {what} is in use", file=sys.stderr)
    return removed


def _size(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
