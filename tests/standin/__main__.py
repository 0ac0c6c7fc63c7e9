"""``python -m tests.standin``: see the package's docstring.

The process that is started is a guardian: the daemon is its child. It ends the daemon in good order
on SIGTERM and SIGINT, and removes what is left of one that was killed: guests, files.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

from pytest_forkd.parent.processes import become_subreaper, kill_children
from tests.standin.daemon import make_server
from tests.standin.machines import Machines
from tests.standin.registry import Registry

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run until a signal comes, or who has started this process ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.standin")
    parser.add_argument("--bind", default="127.0.0.1:0", help="address and port; 0 for a free one")
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--namespaces", type=int, default=64, help="network namespaces there are")
    parser.add_argument("--branch-secs", type=float, default=0.0, help="what a branch takes longer")
    parser.add_argument("--eval-limit", type=float, default=30.0, help="seconds for an expression")
    parser.add_argument("--announce", type=Path, help="file for the URL and the daemon's pid")
    options = parser.parse_args()

    starter = os.getppid()
    state = Path(tempfile.mkdtemp(prefix="standin-"))
    become_subreaper()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    guardian = os.getpid()
    daemon = os.fork()
    if daemon == 0:
        _die_with(guardian, signal.SIGKILL)
        os._exit(_serve(options, state))
    _die_with(starter, signal.SIGTERM)

    def end(signum: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        os.waitpid(daemon, 0)
    finally:
        kill_children(limit=10)
        shutil.rmtree(state, ignore_errors=True)
    return 0


def _die_with(pid: int, signum: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if os.getppid() != pid:
        os._exit(1)


def _serve(options: argparse.Namespace, state: Path) -> int:
    become_subreaper()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    host, _, port = options.bind.rpartition(":")
    token = options.token_file.read_text().strip() if options.token_file else None
    tls = (options.tls_cert, options.tls_key) if options.tls_cert else None
    registry = Registry(
        Machines(state), options.namespaces, options.branch_secs, options.eval_limit
    )
    server = make_server((host, int(port)), registry, token, tls)
    url = f"{'https' if tls else 'http'}://{host}:{server.server_address[1]}"
    line = json.dumps({"url": url, "pid": os.getpid(), "state": str(state)})
    print(line, flush=True)
    if options.announce:
        partial = options.announce.with_suffix(".new")
        partial.write_text(line)
        partial.rename(options.announce)
    # Guests are children of this thread, so it must not end before they do; see prctl(2).
    threading.Thread(target=server.serve_forever, name="server", daemon=True).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
