"""The checks of ``pytest-forkd doctor`` inside a guest of a forkd daemon's snapshot."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_forkd import __version__
from pytest_forkd.console.checks import Check
from pytest_forkd.forkd.access import read_token
from pytest_forkd.forkd.errors import ForkdError, RequestFailed

if TYPE_CHECKING:
    from pytest_forkd.forkd.client import Client

__all__ = ["Question", "look_into_guest"]

#: Guest kernels that reseed their random generator when they notice that they were cloned
#: (VMGENID; Documentation/virt/... of Linux 5.18), and the one that forkd ships.
_RESEEDS = (5, 18)
#: Seconds for the agent of a guest that was just restored.
_PING_LIMIT = 20.0
#: An expression that is evaluated by a guest's agent.
_ABOUT = (
    "(__import__('platform').release(), __import__('platform').python_version(),"
    " __import__('importlib.util').util.find_spec('pytest_forkd') is not None"
    " and __import__('pytest_forkd').__version__,"
    " bool(__import__('os').statvfs('/').f_flag & __import__('os').ST_RDONLY))"
)


@dataclass(frozen=True)
class Question:
    """What to examine.

    :ivar urls: daemons, as given on the command line.
    :ivar token_file: the file with the token, if given.
    :ivar ca: a file with the certificates to trust, if given.
    :ivar tag: the snapshot's tag; the project's snapshot if not given.
    :ivar project: a directory of the project.
    :ivar netns: whether guests get network namespaces of their own.
    :ivar boot: whether to restore a guest and examine it.
    """

    urls: list[str] | None = None
    token_file: str | None = None
    ca: str | None = None
    tag: str | None = None
    project: str = "."
    netns: bool = True
    boot: bool = True


def look_into_guest(question: Question, client: Client, tag: str) -> Iterator[Check]:
    """Restore a guest, examine it, and delete it.

    :param client: a client for a daemon that has the snapshot.
    """
    from pytest_forkd.forkd.client import Client
    from pytest_forkd.forkd.ledger import Ledger

    try:
        ledger = Ledger(question.token_file, question.ca)
    except ForkdError as exc:
        yield Check("guest", "problem", str(exc))
        return
    sandbox = None
    try:
        started = time.monotonic()
        [sandbox] = client.spawn(tag, 1, question.netns)
        ledger.add_sandboxes(client.url, [sandbox.id])
        yield from _look_into(client, sandbox.id, started)
    except RequestFailed as exc:
        advice = ""
        if question.netns and "netns" in str(exc):
            advice = "on the daemon's host, as root: bash scripts/netns-setup.sh N (of forkd)"
        yield Check("guest", "problem", str(exc), advice)
    except ForkdError as exc:
        yield Check("guest", "problem", str(exc))
    finally:
        if sandbox is not None:
            with contextlib.suppress(ForkdError):
                client.delete_sandbox(sandbox.id)
                ledger.forget_sandbox(client.url, sandbox.id)
        token = read_token(question.token_file, os.environ)
        ledger.close(lambda url: Client(url, token, question.ca))


def _look_into(client: Client, sandbox: str, started: float) -> Iterator[Check]:
    deadline = time.monotonic() + _PING_LIMIT
    while True:
        try:
            pong = client.ping(sandbox)
            break
        except RequestFailed as exc:
            if time.monotonic() > deadline:
                yield Check(
                    "guest",
                    "problem",
                    f"its agent does not answer: {exc}",
                    "is the image's Python /usr/local/bin/python3 or /usr/bin/python3?",
                )
                return
            time.sleep(0.05)
    seconds = time.monotonic() - started
    yield Check("guest", "ok", f"restored and answering after {seconds:.2f} s")
    if pong.get("warmup_ready") is not True:
        yield Check(
            "parent",
            "problem",
            "it was not ready when the snapshot was taken",
            "build it with a longer --boot-wait-secs; if that does not help, look at the command "
            "in the guest's /etc/forkd-recipe.env",
        )
    else:
        yield Check("parent", "ok", "ready in the snapshot")
    answer = client.eval(sandbox, _ABOUT)
    try:
        about = ast.literal_eval(answer.result or "")
        if not isinstance(about, tuple):
            raise TypeError("no tuple")
        kernel, python, version, read_only = about
        numbers = tuple(int(each) for each in re.findall(r"\d+", str(kernel))[:2])
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        yield Check("guest", "problem", f"it cannot be looked into: {answer.error}")
        return
    if read_only is True:
        yield Check("guest disk", "ok", "read-only; what is written is in each guest's memory")
    else:
        yield Check(
            "guest disk",
            "warning",
            "all guests of forkd share one disk, and can write to it: two that do damage it",
            "pytest-forkd snapshot build makes snapshots in which it is read-only",
        )
    if numbers < _RESEEDS:
        yield Check(
            "guest kernel",
            "warning",
            f"{_shown(kernel)} does not notice that it was cloned; guests may draw the same random "
            "numbers until pytest-forkd has reseeded them",
            "use forkd's own kernel (6.1): scripts/install-guest-kernel.sh",
        )
    else:
        yield Check("guest kernel", "ok", f"{_shown(kernel)} reseeds itself in each guest")
    if version != __version__:
        yield Check(
            "guest",
            "problem",
            f"it has pytest-forkd {_shown(version)}, and here is {__version__}"
            if version
            else "its Python has no pytest-forkd",
            "pytest-forkd snapshot build",
        )
    else:
        yield Check("guest", "ok", f"Python {_shown(python)}, pytest-forkd {_shown(version)}")


def _shown(value: object) -> str:
    """A guest's text, escaped for the terminal, since it is not trusted."""
    from pytest_forkd.forkd.errors import shorten

    return shorten(str(value))[:80]
