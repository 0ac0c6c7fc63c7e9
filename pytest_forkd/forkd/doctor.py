"""The checks of ``pytest-forkd doctor`` for the forkd backend."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_forkd import __version__
from pytest_forkd.console.checks import Check
from pytest_forkd.forkd.access import TOKEN_VARIABLE, is_local, read_token, read_urls
from pytest_forkd.forkd.errors import (
    ForkdError,
    NoSuchTag,
    Unauthorized,
    Unreachable,
)
from pytest_forkd.forkd.guest_doctor import Question, look_into_guest

if TYPE_CHECKING:
    from pytest_forkd.forkd.client import Client

__all__ = ["examine"]

#: The oldest release with the expected API; before, it does not tell if a snapshot is bootable.
_KNOWN_VERSION = (0, 5, 3)
#: Seconds after which a snapshot is old: its packages miss a month's fixes.
_OLD = 30 * 86400.0
#: Where ip-netns(8) has network namespaces.
_NAMESPACES = "/var/run/netns"
#: How many names are listed.
_SHOWN = 8


def examine(question: Question) -> Iterator[Check]:
    """Check everything that runs with ``--forkd-backend=forkd`` need."""
    try:
        import httpx
    except ModuleNotFoundError:
        yield Check(
            "client",
            "problem",
            "httpx is not installed",
            "python -m pip install 'pytest-forkd[forkd]'",
        )
        return
    yield Check("client", "ok", f"pytest-forkd {__version__}, httpx {httpx.__version__}")
    yield from _token(question)
    try:
        token = read_token(question.token_file, os.environ)
        urls = read_urls(question.urls, "--url", os.environ)
    except ForkdError as exc:
        yield Check("options", "problem", str(exc))
        return
    tag, checks = _tag(question)
    yield from checks
    for url in urls:
        yield from _daemon(question, url, token, tag)
    yield from _leftovers()
    yield from _programs()


def _token(question: Question) -> Iterator[Check]:
    if question.token_file is None:
        if os.environ.get(TOKEN_VARIABLE):
            yield Check("token", "ok", f"in {TOKEN_VARIABLE}")
        else:
            yield Check("token", "skipped", f"none given ({TOKEN_VARIABLE}, --token-file)")
        return
    path = os.path.expanduser(question.token_file)
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if mode & 0o077:
            yield Check(
                "token",
                "warning",
                f"{path} can be read by others (mode {mode:04o}); it is root on the daemon's host",
                f"chmod 600 {path}",
            )
        else:
            yield Check("token", "ok", f"in {path}")


def _tag(question: Question) -> tuple[str | None, list[Check]]:
    if question.tag is not None:
        return question.tag, []
    from pytest_forkd.forkd.built import choose_tag

    try:
        choice = choose_tag(question.project)
    except ForkdError as exc:
        return None, [Check("project", "problem", str(exc))]
    if choice.stale is not None:
        advice = f"pytest-forkd snapshot build --force --tag {choice.tag}"
        text = f"snapshot {choice.tag}: {choice.stale}"
        return choice.tag, [Check("project", "problem", text, advice)]
    return choice.tag, [Check("project", "ok", f"its snapshot is {choice.tag}")]


def _daemon(question: Question, url: str, token: str | None, tag: str | None) -> Iterator[Check]:
    from pytest_forkd.forkd.client import Client

    name = f"daemon {url}"
    try:
        client = Client(url, token, question.ca)
    except ForkdError as exc:
        yield Check(name, "problem", str(exc))
        return
    with client:
        try:
            client.health()
            version = client.version()
            listed = client.snapshots()
        except (Unreachable, Unauthorized) as exc:
            yield Check(name, "problem", str(exc))
            return
        except ForkdError as exc:
            yield Check(name, "problem", str(exc), "is this a forkd daemon?")
            return
        yield _version(name, version)
        if token and urlsplit(url).scheme == "http" and not is_local(url):
            yield Check(
                name,
                "warning",
                "the token, which is root there, is sent over the network as it is",
                "start the daemon with --tls-cert and --tls-key, or reach it through a tunnel",
            )
        if tag is None:
            return
        found = next((each for each in listed if each.tag == tag), None)
        if found is None:
            try:
                client.snapshot_info(tag)
            except NoSuchTag as exc:
                yield Check(f"snapshot {tag}", "problem", str(exc))
            except ForkdError as exc:
                yield Check(f"snapshot {tag}", "problem", str(exc))
            return
        age = time.time() - found.created_at_unix
        days = f"{age / 86400:.0f} days old"
        if not found.bootable or found.status != "ready":
            reason = found.warning or f"its state is {found.status}"
            yield Check(
                f"snapshot {tag}",
                "problem",
                reason,
                f"pytest-forkd snapshot build --tag {tag} --force",
            )
            return
        if age > _OLD:
            yield Check(
                f"snapshot {tag}",
                "warning",
                days,
                f"pytest-forkd snapshot build --tag {tag} --force",
            )
        else:
            yield Check(f"snapshot {tag}", "ok", f"bootable, {days}")
        with contextlib.suppress(ForkdError):
            depth = client.snapshot_info(tag).chain_depth
            if depth:
                yield Check(
                    f"snapshot {tag}",
                    "warning",
                    f"it is a difference to {depth} others, which are hashed each time",
                    "forkd snapshot-compact makes a flat one of it",
                )
        yield from _unrecorded(client, tag)
        if question.netns and is_local(url):
            yield from _namespaces(_NAMESPACES)
        if question.boot:
            yield from look_into_guest(question, client, tag)
        else:
            yield Check("guest", "skipped", "not restored (--no-boot)")


def _unrecorded(client: Client, tag: str) -> Iterator[Check]:
    """Report sandboxes that no run of this machine has recorded: lost, or of other machines."""
    from pytest_forkd.forkd.records import Records

    try:
        recorded = {entry for run in Records().all() for entry in run.sandboxes}
        found = [
            each.id
            for each in client.sandboxes()
            if each.snapshot_tag == tag and (client.url, each.id) not in recorded
        ]
    except ForkdError as exc:
        yield Check("sandboxes", "problem", str(exc))
        return
    if found:
        names = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        yield Check(
            "sandboxes",
            "warning",
            f"{len(found)} of snapshot {tag} are on no record here: {names}",
            "If no run on another machine, and no other user, has made them, they are left of a "
            f"spawn whose answer got lost: DELETE {client.url}/v1/sandboxes/ID",
        )


def _namespaces(folder: str) -> Iterator[Check]:
    """Report how many network namespaces there are, if that is visible from here."""
    with contextlib.suppress(OSError):
        count = sum(name.startswith("forkd-child-") for name in os.listdir(folder))
        if count:
            yield Check("netns", "ok", f"{count} network namespaces, for as many machines at once")
        else:
            yield Check(
                "netns",
                "warning",
                f"no network namespace forkd-child-* in {folder}",
                "as root: bash scripts/netns-setup.sh N (of forkd); it is gone after a restart",
            )


def _version(name: str, version: str) -> Check:
    numbers = tuple(int(each) for each in re.findall(r"\d+", version)[:3])
    if numbers < _KNOWN_VERSION:
        known = ".".join(map(str, _KNOWN_VERSION))
        return Check(
            name,
            "warning",
            f"forkd {version}; it does not say whether a snapshot can be restored",
            f"this release was made for forkd {known}: update forkd",
        )
    return Check(name, "ok", f"forkd {version}")


def _leftovers() -> Iterator[Check]:
    from pytest_forkd.forkd.records import Records

    try:
        lost = [run for run in Records().all() if not run.is_running()]
    except ForkdError as exc:
        yield Check("records", "problem", str(exc))
        return
    if lost:
        count = sum(len(run.sandboxes) + len(run.branches) for run in lost)
        text = f"{len(lost)} runs have left {count} sandboxes and branches"
        yield Check("records", "warning", text, "pytest-forkd prune")
    else:
        yield Check("records", "ok", "no run has left anything")


def _programs() -> Iterator[Check]:
    missing = [name for name in ("docker", "forkd") if shutil.which(name) is None]
    if missing:
        text = f"no {' and no '.join(missing)} here: snapshots are made on the daemon's host"
        yield Check("snapshot build", "skipped", text)
    else:
        yield Check("snapshot build", "ok", "docker and forkd are here")
