"""The HTTP side of the stand-in: forkd's v1 routes."""

from __future__ import annotations

import contextlib
import hmac
import http.server
import json
import re
import socket
import ssl
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

from tests.standin.faults import Faults
from tests.standin.registry import Refusal, Registry

__all__ = ["Daemon", "make_server"]

#: axum's default limit of a request's body.
_MAX_BODY = 2 * 1024 * 1024
_ID = r"(?P<id>[^/]+)"


class Daemon(http.server.ThreadingHTTPServer):
    """Serves one registry."""

    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(
        self, address: tuple[str, int], registry: Registry, token: str | None, faults: Faults
    ) -> None:
        self.registry = registry
        self.token = token
        self.faults = faults
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is none of ours."""


def make_server(
    address: tuple[str, int],
    registry: Registry,
    token: str | None,
    tls: tuple[Path, Path] | None,
) -> Daemon:
    """A server that listens, and does not serve yet.

    :param tls: certificate and key.
    """
    server = Daemon(address, registry, token, Faults())
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    return server


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Daemon
    timeout = 120
    # Without these two, half an answer would wait until the other half's receipt.
    disable_nagle_algorithm = True
    wbufsize = -1

    routes: tuple[tuple[str, str, str], ...] = (
        ("GET", "/version", "version"),
        ("GET", "/metrics", "metrics"),
        ("POST", "/v1/snapshots", "create_snapshot"),
        ("GET", "/v1/snapshots", "list_snapshots"),
        ("GET", f"/v1/snapshots/{_ID}/info", "snapshot_info"),
        ("DELETE", f"/v1/snapshots/{_ID}", "delete_snapshot"),
        ("POST", "/v1/sandboxes", "spawn"),
        ("GET", "/v1/sandboxes", "list_sandboxes"),
        ("GET", f"/v1/sandboxes/{_ID}", "get_sandbox"),
        ("DELETE", f"/v1/sandboxes/{_ID}", "delete_sandbox"),
        ("POST", f"/v1/sandboxes/{_ID}/ping", "ping"),
        ("POST", f"/v1/sandboxes/{_ID}/exec", "exec"),
        ("POST", f"/v1/sandboxes/{_ID}/eval", "eval"),
        ("POST", f"/v1/sandboxes/{_ID}/branch", "branch"),
    )

    def do_GET(self) -> None:
        self.serve()

    do_POST = do_DELETE = do_GET

    def serve(self) -> None:
        """Serve one request."""
        parts = urllib.parse.urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        if parts.path == "/healthz":
            fault = self.server.faults.take(self.command, parts.path)
            if fault is not None and fault.drop:
                self.break_off()
            else:
                self.reply(200, {"ok": True})
            return
        if parts.path.startswith("/standin/"):
            self.administer(parts.path, json.loads(self.rfile.read(length)))
            return
        if not self.is_allowed():
            return
        if length > _MAX_BODY:
            # As axum does: text, and the connection is closed, since the body was not read.
            self.close_connection = True
            self.reply(413, "Failed to buffer the request body: length limit exceeded")
            return
        body = self.rfile.read(length)
        fault = self.server.faults.take(self.command, parts.path)
        if fault is not None and fault.drop == "before":
            self.break_off()
            return
        if fault is not None and fault.status:
            self.reply(fault.status, fault.body or {"error": "injected"})
            return
        status, answer = self.dispatch(parts.path, dict(urllib.parse.parse_qsl(parts.query)), body)
        if fault is not None and fault.drop == "after":
            self.break_off()
        else:
            self.reply(status, answer if fault is None or fault.body is None else fault.body)

    def is_allowed(self) -> bool:
        token = self.server.token
        if token is None:
            return True
        shown = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if shown and hmac.compare_digest(shown.encode(), token.encode()):
            return True
        self.close_connection = True
        self.reply(401, {"error": "invalid bearer token" if shown else "missing bearer token"})
        return False

    def dispatch(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        allowed = False
        for method, pattern, name in self.routes:
            match = re.fullmatch(pattern, path)
            if match is None:
                continue
            if method != self.command:
                allowed = True
                continue
            if method != "POST" or name == "ping":
                request: Any = query
            else:
                try:
                    request = json.loads(body)
                except ValueError as exc:
                    return 400, f"Failed to parse the request body as JSON: {exc}"
                if not isinstance(request, dict):
                    return 422, "Failed to deserialize the JSON body into the target type"
            try:
                answer = getattr(self.server.registry, name)(*match.groupdict().values(), request)
            except Refusal as exc:
                return exc.status, {"error": str(exc)}
            except (KeyError, TypeError, ValueError) as exc:
                return 422, f"Failed to deserialize the JSON body into the target type: {exc!r}"
            return answer if isinstance(answer, tuple) else (200, answer)
        return (405, "") if allowed else (404, "")

    def administer(self, path: str, request: Any) -> None:
        if path == "/standin/faults":
            self.server.faults.set(request)
        elif path == "/standin/damage":
            self.server.registry.damage(request["tag"], request["reason"])
        self.reply(200, {"ok": True})

    def reply(self, status: int, answer: Any) -> None:
        is_text = isinstance(answer, str)
        data = b"" if answer is None else (answer if is_text else json.dumps(answer)).encode()
        kind = "text/plain; charset=utf-8" if is_text else "application/json"
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if status != 204:
                self.send_header("Content-Length", str(len(data)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

    def break_off(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        """Print a line for each request, to the daemon's log; not for the many of a stream."""
        if self.path.endswith("/eval") and args[1:2] == ("200",):
            return
        name = threading.current_thread().name
        print(f"{time.time():.3f} {name} {format % args}", flush=True)
