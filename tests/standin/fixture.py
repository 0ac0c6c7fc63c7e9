"""The stand-in daemon in tests: ``with StandIn(tmp_path) as daemon: daemon.boot("tag")``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TLS", "StandIn"]

_ROOT = Path(__file__).parent.parent.parent
#: An authority of our own, and the certificate of 127.0.0.1 that it has signed.
TLS = Path(__file__).parent / "tls"
#: Seconds for the daemon to start, and to end.
_START_LIMIT = 20.0
_END_LIMIT = 20.0


class StandIn:
    """A stand-in daemon, running from ``__enter__`` to ``__exit__``.

    :param directory: for its log, its token file and descriptions of guests.
    :param token: what it wants to be shown; ``None`` for nothing.
    :param tls: whether it speaks HTTPS, with the certificate in :data:`TLS`.
    :param options: more of the command line.

    :ivar url: where it is.
    :ivar pid: of the daemon.
    :ivar token_file: a file with the token.
    """

    def __init__(
        self,
        directory: Path,
        *,
        token: str | None = None,
        tls: bool = False,
        options: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory
        self.token = token
        self.tls = tls
        self.options = options
        self.url = ""
        self.pid = 0
        self.token_file = directory / "token"
        self.log = directory / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        announce = self.directory / "announce.json"
        announce.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.standin", "--announce", str(announce)]
        if self.token is not None:
            self.token_file.write_text(self.token + "\n")
            self.token_file.chmod(0o600)
            command += ["--token-file", str(self.token_file)]
        if self.tls:
            command += ["--tls-cert", str(TLS / "cert.pem"), "--tls-key", str(TLS / "key.pem")]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("FORKD_")}
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [*command, *self.options],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_LIMIT
        while not announce.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"the stand-in does not start: {self.log.read_text()}")
            time.sleep(0.005)
        told = json.loads(announce.read_text())
        self.url, self.pid = told["url"], told["pid"]
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process = None

    def kill(self) -> None:
        """Kill the daemon, as a host that fails would; its guests go with it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(_END_LIMIT)

    def boot(
        self,
        tag: str,
        recipe: Mapping[str, str] | None = None,
        own: Mapping[str, str | None] | None = None,
        wait: int = 60,
    ) -> dict[str, Any]:
        """Make a snapshot of a guest.

        :param recipe: what would be in its ``/etc/forkd-recipe.env``.
        :param own: directories that it has for itself: the path, and what it is a copy of
            (``None`` for an empty one). ``/run`` always is one.
        """
        rootfs = self.directory / f"{tag}.rootfs.json"
        rootfs.write_text(json.dumps({"recipe": dict(recipe or {}), "own": dict(own or {})}))
        request = {
            "tag": tag,
            "kernel": str(rootfs),
            "rootfs": str(rootfs),
            "boot_wait_secs": wait,
        }
        return self.post("/v1/snapshots", request)  # type: ignore[no-any-return]

    def faults(self, *faults: Mapping[str, Any]) -> None:
        """Replace the faults, see :class:`tests.standin.faults.Fault`."""
        self.post("/standin/faults", [dict(each) for each in faults])

    def damage(self, tag: str, reason: str) -> None:
        """Make a snapshot unbootable."""
        self.post("/standin/damage", {"tag": tag, "reason": reason})

    def post(self, path: str, body: Any) -> Any:
        """What a POST request is answered."""
        return self._request(path, json.dumps(body).encode(), "POST")

    def delete(self, path: str) -> None:
        """Send a DELETE request."""
        self._request(path, None, "DELETE")

    def get(self, path: str) -> Any:
        """What a GET request is answered."""
        return self._request(path, None, "GET")

    def _request(self, path: str, data: bytes | None, method: str) -> Any:
        import ssl

        headers = {"Content-Type": "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        context = ssl.create_default_context(cafile=str(TLS / "ca.pem")) if self.tls else None
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(request, timeout=90) as response:
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as exc:
            raise RuntimeError(f"{exc.code}: {exc.read().decode(errors='replace')}") from exc
