"""Requests to a daemon: limits, retries of idempotent requests, and errors in plain words."""

from __future__ import annotations

import json
import logging
import ssl
import time
from collections.abc import Generator

import httpx

from pytest_forkd.forkd.access import TOKEN_VARIABLE, Token, is_local, parse_url, tls_context
from pytest_forkd.forkd.errors import (
    Busy,
    ForkdError,
    RequestFailed,
    TooLarge,
    Unauthorized,
    Unreachable,
    shorten,
)

__all__ = ["Transport"]

#: Bytes of an answer that are read.
_MAX_ANSWER = 64 * 1024 * 1024
#: Bytes of a body that may exceed a limit: a daemon's is 2 MB, a proxy's may be lower.
_LARGE = 500_000
#: Seconds for a connection to one address of a daemon.
_CONNECT_LIMIT = 2.0
#: Seconds before each retry of an idempotent request.
_PAUSES = (0.1, 0.4)


# A stream makes thousands of requests, and with pytest's log_cli or log_file each would be logged.
for _name in ("httpx", "httpcore"):
    if logging.getLogger(_name).level == logging.NOTSET:
        logging.getLogger(_name).setLevel(logging.WARNING)


class _Bearer(httpx.Auth):
    def __init__(self, token: Token) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = self._token.header()
        yield request


class Transport:
    """Connections to one daemon; may be used from several threads.

    :param url: the daemon's address.
    :param token: its token, if it needs one.
    :param ca: a file with the certificates to trust, instead of the system's.
    :raises ForkdError: if one of them is invalid.
    """

    def __init__(self, url: str, token: str | None, ca: str | None) -> None:
        self.url = parse_url(url)
        self._token = Token(token) if token else None
        verify: ssl.SSLContext | bool = tls_context(ca) if self.url.startswith("https:") else True
        self._http = httpx.Client(
            base_url=self.url,
            auth=_Bearer(self._token) if self._token else None,
            headers={"Accept-Encoding": "identity"},
            verify=verify,
            # A proxy cannot reach this machine's loopback.
            trust_env=not is_local(self.url),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            follow_redirects=False,
        )

    def close(self) -> None:
        """Close all connections; safe to call twice."""
        self._http.close()

    def send(
        self, method: str, path: str, content: bytes | None, limit: float, *, repeat: bool
    ) -> bytes:
        """The answer to a request.

        :param content: a JSON text, if there is anything to send.
        :param limit: seconds to wait for the answer.
        :param repeat: whether the request may be sent again if its answer is lost.
        :raises ForkdError: if there is no answer, or if it reports an error.
        """
        pauses = iter(_PAUSES if repeat else ())
        while True:
            try:
                return self._send_once(method, path, content, limit)
            except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
                raise self.unreachable(_reason(exc)) from None
            except httpx.TimeoutException:
                raise Unreachable(
                    f"the daemon at {self.url} has not answered {method} {path} "
                    f"within {limit:g} seconds."
                ) from None
            except (httpx.TransportError, httpx.StreamError) as exc:
                if content is not None and len(content) > _LARGE:
                    # A server that refuses a large request may close the connection before it has
                    # read all of it.
                    raise self._too_large(len(content), _reason(exc)) from None
                pause = next(pauses, None)
                if pause is None:
                    raise Unreachable(
                        f"the daemon at {self.url} broke off {method} {path}: {_reason(exc)}."
                    ) from None
                time.sleep(pause)
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                raise RequestFailed(
                    f"{method} {path} to {self.url} failed: {_reason(exc)}."
                ) from None

    def _send_once(self, method: str, path: str, content: bytes | None, limit: float) -> bytes:
        timeout = httpx.Timeout(limit, connect=min(limit, _CONNECT_LIMIT))
        headers = {"Content-Type": "application/json"} if content is not None else None
        deadline = time.monotonic() + limit
        with self._http.stream(
            method, path, content=content, headers=headers, timeout=timeout
        ) as response:
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > _MAX_ANSWER:
                    raise RequestFailed(f"{self.url} answers {path} with more than 64 MiB.")
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer trickles")
            status = response.status_code
        if 200 <= status < 300:
            return bytes(data)
        raise self._refused(status, path, bytes(data), len(content or b""))

    def _refused(self, status: int, path: str, data: bytes, size: int) -> ForkdError:
        said = self._said(data)
        if status == 401:
            if self._token is None:
                return Unauthorized(
                    f"the daemon at {self.url} wants a token: set {TOKEN_VARIABLE}, or give "
                    "--forkd-token-file FILE (the daemon was started with such a file)."
                )
            return Unauthorized(
                f"the daemon at {self.url} does not accept the token; it is read from the file of "
                f"--forkd-token-file, else from {TOKEN_VARIABLE}."
            )
        if status == 413:
            return self._too_large(size, said or "it gives no reason")
        if status == 503:
            return Busy(f"the daemon at {self.url} is busy: {said or 'it gives no reason'}")
        if not said:
            said = f"{self.url} has answered {path} with HTTP status {status}."
        return RequestFailed(said, status)

    def _too_large(self, size: int, reason: str) -> TooLarge:
        return TooLarge(
            f"a request of {size} bytes is too large for the daemon at {self.url}, or for a proxy "
            f"before it: {reason}"
        )

    def _said(self, data: bytes) -> str:
        """The daemon's reason, as one line for the user."""
        text = ""
        try:
            answer = json.loads(data)
            if isinstance(answer, dict) and isinstance(answer.get("error"), str):
                text = answer["error"]
        except (ValueError, RecursionError):
            # axum's own errors are plain text; a proxy's are mostly HTML.
            if not data.lstrip().startswith(b"<"):
                text = data.decode("utf-8", "replace")
        return shorten(self._token.hide(text) if self._token else text)

    def unreachable(self, reason: str) -> Unreachable:
        """The error for a daemon to which there is no connection."""
        if "certificate" in reason.lower():
            return Unreachable(
                f"the certificate of the daemon at {self.url} is not accepted: {reason}.\n"
                "Give the authority that has signed it with --forkd-ca FILE."
            )
        address = httpx.URL(self.url)
        if is_local(self.url):
            bind = f" --bind 127.0.0.1:{address.port or 8889}"
            how = f"Start one as root: forkd-controller serve{bind} --token-file /etc/forkd/token"
        else:
            how = f"Start one on {address.host}, see forkd-controller serve --help"
        return Unreachable(
            f"no forkd daemon at {self.url}: {reason}.\n{how}; "
            "or name another one with --forkd-url or FORKD_URL."
        )


def _reason(exc: Exception) -> str:
    return shorten(str(exc)).rstrip(".") or type(exc).__name__
