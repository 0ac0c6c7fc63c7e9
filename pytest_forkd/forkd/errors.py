"""What can go wrong with a forkd daemon, in words for the user.

This module does not import httpx, so that errors can be caught where it is not installed.
"""

from __future__ import annotations

import re

__all__ = [
    "Busy",
    "ForkdError",
    "NoSuchSandbox",
    "NoSuchTag",
    "NotBootable",
    "RequestFailed",
    "TooLarge",
    "Unauthorized",
    "Unreachable",
    "shorten",
]

#: Characters of a daemon's text that are shown.
_SHOWN = 400


class ForkdError(Exception):
    """A daemon cannot do what it was asked for; the message says why and what to do."""


class Unreachable(ForkdError):
    """The daemon's URL cannot be reached, or does not answer in time."""


class Unauthorized(ForkdError):
    """The daemon requires a token, or another one than was sent."""


class NoSuchTag(ForkdError):
    """The daemon has no snapshot of that tag."""


class NoSuchSandbox(ForkdError):
    """The daemon does not know the sandbox, or does not have it any more."""


class NotBootable(ForkdError):
    """The snapshot cannot be restored; the daemon's reason is part of the message."""


class TooLarge(ForkdError):
    """The request is above the daemon's limit."""


class Busy(ForkdError):
    """The daemon is too busy to accept the request."""


class RequestFailed(ForkdError):
    """The request failed for another reason.

    :ivar status: the HTTP status; ``None`` if there was no usable answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def shorten(text: str) -> str:
    """A daemon's or guest's text, fit for one line of a terminal."""
    line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."
