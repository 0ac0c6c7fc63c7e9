"""What the exec stream carries: exchanges a second when idle, small messages, megabytes.

    python benchmarks/exec_stream.py [--url URL --tag TAG] [--way eval|exec] [--seconds 5]

Without ``--url`` it starts the tests' stand-in for a forkd daemon, and measures its HTTP server and
its guest as much as the stream. A daemon's snapshot has to run ``python benchmarks/exec_stream.py
--guest`` as its ``FORKD_WARMUP_CMD``.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import selectors
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_forkd.channel.exec_stream import EvalWay, ExecStream, ExecWay
from pytest_forkd.channel.mux import (
    CONTROL,
    WORKER,
    Demultiplexer,
    control_frame,
    data_frames,
    parse_control,
)

_ROOT = Path(__file__).resolve().parents[1]
#: Bytes of a small report: a test that passed, in its short form, see ``channel/short_reports.py``.
_REPORT = 300


def serve_guest() -> None:
    """Do in a guest what the controller asks for: send, or count what it sends."""
    from pytest_forkd.guest.port import Port
    from pytest_forkd.guest.relay import PATHS

    path = os.environ.get("PYTEST_FORKD_SOCKET", PATHS[0])
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    port = Port(listener)
    print('{"ready": true}', flush=True)
    taken = 0
    worker: socket.socket | None = None
    while True:
        port.wait(None)
        port.opened()
        while worker is not None and not port.full:
            # What a collector does with its worker's channel.
            try:
                data = worker.recv(128 * 1024)
            except BlockingIOError:
                break
            if not data:
                port.selector.unregister(worker)
                worker.close()
                worker = None
                break
            port.data(WORKER, data)
        for channel, payload in port.frames():
            if channel == WORKER:
                taken += len(payload)
            message = parse_control(payload) if channel == CONTROL else {}
            if "send" in message:
                worker = _start_worker(**message["send"])
                port.selector.register(worker, selectors.EVENT_READ, "worker")
            elif "taken" in message:
                port.control({"taken": taken})
                taken = 0


def _start_worker(count: int, size: int) -> socket.socket:
    """A process that writes messages one by one, as a worker writes reports."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        for _ in range(count):
            theirs.sendall(b"x" * size)
        os._exit(0)
    theirs.close()
    ours.setblocking(False)
    return ours


@contextlib.contextmanager
def _daemon(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Address of a daemon and the tag of its snapshot."""
    if options.url:
        yield options.url, options.tag
        return
    sys.path.insert(0, str(_ROOT))
    from tests.standin.fixture import StandIn

    with tempfile.TemporaryDirectory() as folder, StandIn(Path(folder)) as daemon:
        daemon.boot("stream", {"FORKD_WARMUP_CMD": f"python3 {Path(__file__).resolve()} --guest"})
        yield daemon.url, "stream"


def _receive(stream: ExecStream, total: int) -> int:
    """Receive so many bytes on the worker's channel; returns how many exchanges that took."""
    demultiplexer = Demultiplexer(CONTROL, WORKER)
    before = stream.exchanges
    while total > 0:
        for channel, payload in demultiplexer.feed(stream.receive()):
            if channel == WORKER:
                total -= len(payload)
    return stream.exchanges - before


def _taken(stream: ExecStream) -> int:
    stream.send(control_frame({"taken": {}}))
    frames = Demultiplexer(CONTROL).feed(stream.receive())
    return int(parse_control(frames[0][1])["taken"])


def measure(stream: ExecStream, seconds: float) -> None:
    """Print the figures of a stream."""
    _taken(stream)
    before = stream.exchanges

    def idle() -> None:
        _receive(stream, 1)

    thread = threading.Thread(target=idle)
    thread.start()
    time.sleep(max(seconds, 11.0))
    print(f"idle: {(stream.exchanges - before) / max(seconds, 11.0):.2f} exchanges a second")
    stream.send(control_frame({"send": {"count": 1, "size": 1}}))
    thread.join()

    rate = 1000.0
    for _ in range(2):  # the first is to find out how many take the wanted time
        count = math.ceil(rate * seconds)
        start = time.perf_counter()
        stream.send(control_frame({"send": {"count": count, "size": _REPORT}}))
        exchanges = _receive(stream, count * _REPORT)
        elapsed = time.perf_counter() - start
        rate = min(count / elapsed, 200_000)
    print(
        f"from the guest, messages of {_REPORT} bytes: {count / elapsed:,.0f} a second "
        f"({exchanges / elapsed:.0f} exchanges a second)"
    )
    size = 64 * 1024
    for direction in ("from", "to"):
        rate = 100.0
        for _ in range(2):
            count = math.ceil(rate * seconds)
            start = time.perf_counter()
            if direction == "from":
                stream.send(control_frame({"send": {"count": count, "size": size}}))
                _receive(stream, count * size)
            else:
                stream.send(data_frames(WORKER, b"\x5a" * (count * size)))
                if _taken(stream) != count * size:
                    raise SystemExit("the guest has not got what was sent")
            elapsed = time.perf_counter() - start
            rate = count / elapsed
        print(f"{direction} the guest: {count * size / elapsed / 1e6:.1f} MB/s")


def main() -> None:
    """Measure, or be the guest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guest", action="store_true", help="serve in a guest")
    parser.add_argument("--url", help="of a daemon; the stand-in if left out")
    parser.add_argument("--tag", default="stream", help="of its snapshot")
    parser.add_argument("--way", choices=["eval", "exec"], default="eval")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement")
    options = parser.parse_args()
    if options.guest:
        serve_guest()
        return
    from pytest_forkd.forkd.access import read_token
    from pytest_forkd.forkd.client import Client

    with _daemon(options) as (url, tag), Client(url, read_token(None, os.environ)) as client:
        (sandbox,) = client.spawn(tag, 1, per_child_netns=True)
        try:
            way: Any
            if options.way == "eval":
                way = EvalWay(lambda code, limit: client.eval(sandbox.id, code, limit))
            else:
                way = ExecWay(lambda args, limit: client.exec(sandbox.id, args, int(limit)))
            way.install()
            measure(ExecStream(way), options.seconds)
        finally:
            client.delete_sandbox(sandbox.id)


if __name__ == "__main__":
    main()
