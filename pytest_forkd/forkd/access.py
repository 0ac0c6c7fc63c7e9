"""How to reach a daemon: URL, token, certificates."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_forkd.forkd.errors import ForkdError

if TYPE_CHECKING:
    import ssl

__all__ = ["DEFAULT_URL", "TOKEN_VARIABLE", "URL_VARIABLE", "Token", "is_local", "parse_url"]
__all__ += ["add_options", "read_token", "read_urls", "tls_context"]

DEFAULT_URL = "http://127.0.0.1:8889"
URL_VARIABLE = "FORKD_URL"
#: There is no option for the token, since every user of the machine can read command lines.
TOKEN_VARIABLE = "FORKD_TOKEN"  # noqa: S105 - the name of a variable
#: Bytes of a token file that are read.
_MAX_TOKEN = 4096


class Token:
    """A bearer token; only :meth:`header` reveals it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def header(self) -> str:
        """The value of the header ``Authorization``."""
        return f"Bearer {self._text}"

    def hide(self, text: str) -> str:
        """``text`` with the token removed, if it contains it."""
        return text.replace(self._text, "***")

    def __repr__(self) -> str:
        return "Token(***)"

    def __reduce__(self) -> str:
        raise TypeError("a token is not to be pickled")


def parse_url(text: str, source: str = "--forkd-url") -> str:
    """A daemon's URL in its short form, without a slash at its end.

    :param source: where the URL comes from, for error messages.
    :raises ForkdError: if it is not a valid URL.
    """
    example = f"Give the daemon's address, such as {DEFAULT_URL}."
    try:
        parts = urlsplit(text.strip())
        secret = parts.username is not None or parts.password is not None
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        raise ForkdError(f"{source}: this is no URL. {example}") from None
    if secret:
        raise ForkdError(
            f"{source}: a URL must not hold a password; the token goes into {TOKEN_VARIABLE} or "
            "the file of --forkd-token-file."
        )
    if not valid or parts.query or parts.fragment:
        raise ForkdError(f"{source}: {text!r} is no URL of a daemon. {example}")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def is_local(url: str) -> bool:
    """Whether a daemon's URL names this machine's loopback."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host == "::1" or host.startswith("127.")


def read_token(file: str | None, environ: Mapping[str, str]) -> str | None:
    """The token: from ``file`` if one is named, else from ``FORKD_TOKEN``.

    :returns: ``None`` if there is none, which is right for a daemon without a token.
    :raises ForkdError: if the file cannot be read, or holds no token.
    """
    if file is not None:
        source = f"--forkd-token-file: {file}"
        try:
            with open(os.path.expanduser(file), "rb") as opened:
                data = opened.read(_MAX_TOKEN + 1)
        except OSError as exc:
            raise ForkdError(f"{source} cannot be read: {exc.strerror}.") from None
        token = data.decode("ascii", "replace").strip()
        if not token:
            raise ForkdError(f"{source} is empty; it is to hold the daemon's token.")
    else:
        source = TOKEN_VARIABLE
        token = environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            return None
    if len(token) > _MAX_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ForkdError(f"{source} holds no token: one line of printable ASCII is expected.")
    return token


def tls_context(ca: str | None) -> ssl.SSLContext:
    """How a daemon's certificate is verified.

    :param ca: ``--forkd-ca``, a file with the certificates to trust; ``None`` for the system's.
    :raises ForkdError: if the file holds none.
    """
    import ssl  # slow to load, and not needed by commands without a daemon

    try:
        return ssl.create_default_context(cafile=None if ca is None else os.path.expanduser(ca))
    except (OSError, ssl.SSLError) as exc:
        reason = exc.strerror if isinstance(exc, FileNotFoundError) else "no PEM certificates in it"
        raise ForkdError(f"--forkd-ca: {ca} cannot be used: {reason}.") from None


def add_options(parser: argparse.ArgumentParser, *, url: bool = True) -> None:
    """Add the options for reaching daemons.

    :param url: whether to add an option for their URLs.
    """
    if url:
        parser.add_argument(
            "--url",
            "--forkd-url",
            action="append",
            metavar="URL",
            help=f"a daemon; several times for several ({URL_VARIABLE}, else {DEFAULT_URL})",
        )
    parser.add_argument(
        "--token-file",
        "--forkd-token-file",
        metavar="FILE",
        help="where the daemon's token is, unless it is in FORKD_TOKEN",
    )
    parser.add_argument(
        "--ca",
        "--forkd-ca",
        metavar="FILE",
        help="the certificates to trust, instead of the system's",
    )


def read_urls(given: list[str] | None, source: str, environ: Mapping[str, str]) -> list[str]:
    """The daemons' URLs: those that are given, else those in ``FORKD_URL``, else the default.

    Duplicates are removed: a daemon that is named twice would get its workers twice.

    :param source: where the given URLs come from, for error messages.
    :raises ForkdError: if one is not a valid URL.
    """
    if given:
        return list(dict.fromkeys(parse_url(each, source) for each in given))
    listed = [each for each in re.split(r"[\s,]+", environ.get(URL_VARIABLE, "")) if each]
    return list(dict.fromkeys(parse_url(each, URL_VARIABLE) for each in listed)) or [DEFAULT_URL]
