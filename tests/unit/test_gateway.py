"""Both ends of a worker's channel over a real socket, and what a worker cannot do to the other."""

from __future__ import annotations

import json
import queue
import socket
import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import execnet
import pytest
from execnet.gateway_base import Message, dumps_internal
from hypothesis import given
from hypothesis import strategies as st

from pytest_forkd.channel import gateway as gateway_module
from pytest_forkd.channel.bounds import MAX_MESSAGE_BYTES
from pytest_forkd.channel.event_queue import EventQueue
from pytest_forkd.channel.gateway import CloneGateway, SocketIO
from pytest_forkd.channel.wire import CHANNEL_ID, ChannelClosed, WorkerChannel
from tests.unit import no_longer_than, property_based
from tests.unit.test_frames import cut

END = object()


@dataclass
class Pair:
    """A controller's gateway and the socket of its worker."""

    events: EventQueue
    gateway: CloneGateway
    channel: Any
    worker: socket.socket
    received: list[object] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def serve(self) -> None:
        """Let the controller handle what has arrived."""
        self.events.poll(0)
        self.gateway.drain()


@contextmanager
def gateways(count: int = 1) -> Iterator[list[Pair]]:
    group = execnet.Group()
    events = EventQueue()
    pairs = []
    with no_longer_than(30):
        for number in range(count):
            ours, theirs = socket.socketpair()
            spec = execnet.XSpec("popen")
            spec.id = f"gw{number}"
            gateway = CloneGateway(SocketIO(ours, group.execmodel), spec, events, {"pid": 1})
            pair = Pair(events, gateway, gateway.newchannel(), theirs)
            pair.channel.setcallback(pair.received.append, endmarker=END)
            gateway.on_protocol_error = pair.errors.append
            pairs.append(pair)
        try:
            yield pairs
        finally:
            for pair in pairs:
                pair.gateway.close()
                pair.worker.close()
            events.close()


def message(
    code: int, payload: bytes, channel: int = CHANNEL_ID, length: int | None = None
) -> bytes:
    return struct.pack("!bii", code, channel, len(payload) if length is None else length) + payload


# -- what works --------------------------------------------------------------------------------


@property_based
@given(payloads=st.lists(st.binary(max_size=50), max_size=5), places=st.lists(st.integers(0)))
def test_what_a_worker_sends_arrives_in_order_whatever_the_chunking(
    payloads: list[bytes], places: list[int]
) -> None:
    data = b"".join(message(Message.CHANNEL_DATA, dumps_internal(load)) for load in payloads)
    with gateways() as [pair]:
        for piece in cut(data, places):
            pair.worker.sendall(piece)
            pair.serve()
        assert pair.received == payloads
        assert pair.errors == []


@property_based
@given(st.lists(st.binary(max_size=50), max_size=5))
def test_a_worker_s_channel_speaks_to_the_gateway(payloads: list[bytes]) -> None:
    with gateways() as [pair]:
        worker = WorkerChannel(pair.worker)
        for payload in payloads:
            worker.send(payload)
        pair.serve()
        assert pair.received == payloads
        worker.close()
        assert pair.gateway.drain()
        assert pair.received == [*payloads, END]
        assert pair.errors == []


commands = st.lists(
    st.tuples(
        st.sampled_from(["runtests", "steal", "shutdown"]),
        st.dictionaries(st.just("indices"), st.lists(st.integers(0, 10**6), max_size=5)),
    ),
    max_size=5,
)


@property_based
@given(commands=commands, places=st.lists(st.integers(0)))
def test_commands_reach_the_worker_and_then_the_end_does(
    commands: list[tuple[str, dict[str, Any]]], places: list[int]
) -> None:
    """In order, whatever the chunking; what came before the end is not lost."""
    with gateways() as [pair]:
        for command in commands:
            pair.channel.send(json.dumps(command).encode())
        pair.gateway.close()
        data = b""
        while piece := pair.worker.recv(65536):
            data += piece
    ours, theirs = socket.socketpair()
    worker = WorkerChannel(theirs)
    found = []
    with ours, no_longer_than(30):
        for piece in cut(data, places):
            ours.sendall(piece)
            found += worker.commands(wait=False)
        assert worker.commands(wait=False) == []
        ours.close()
        while True:
            try:
                found += worker.commands(wait=True)
            except ChannelClosed:
                break
        worker.close()
    assert found == commands


def test_closing_the_channel_ends_the_wait_for_commands() -> None:
    with gateways() as [pair]:
        worker = WorkerChannel(pair.worker)
        pair.channel.send(b'["runtests", {"indices": [1]}]')
        pair.channel.close()
        assert worker.commands(wait=True) == [("runtests", {"indices": [1]})]
        with pytest.raises(ChannelClosed):
            worker.commands(wait=True)


def test_the_gateway_looks_to_plugins_like_one_of_execnet_s() -> None:
    with gateways() as [pair]:
        assert isinstance(pair.gateway, execnet.Gateway)
        assert pair.gateway.id == "gw0"
        assert pair.gateway._rinfo().pid == 1
        with pytest.raises(RuntimeError, match="pytest_forkd_worker_start"):
            pair.gateway.remote_exec("channel.send(1)")


# -- what is refused ---------------------------------------------------------------------------

BAD = {
    "junk": b"\xff" * 40,
    "text": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "too long": message(Message.CHANNEL_DATA, b"", length=MAX_MESSAGE_BYTES + 1),
    "of negative length": message(Message.CHANNEL_DATA, b"", length=-1),
    "no object": message(Message.CHANNEL_DATA, b"\xff"),
    "no payload": message(Message.CHANNEL_DATA, b""),
    "half an object": message(Message.CHANNEL_DATA, dumps_internal(b"text")[:-3]),
    "an unknown code": message(99, b""),
    "a command to execute": message(Message.CHANNEL_EXEC, dumps_internal(("import os", "", {}))),
    "a command to end": message(Message.GATEWAY_TERMINATE, b""),
    "a question": message(Message.STATUS, b""),
    "a setting": message(Message.RECONFIGURE, dumps_internal((True, True))),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_ends_its_gateway_and_no_other(name: str) -> None:
    """It is told once; nothing that comes later is looked at."""
    with gateways(2) as [pair, other]:
        pair.worker.sendall(message(Message.CHANNEL_DATA, dumps_internal(b"before")))
        pair.worker.sendall(BAD[name])
        pair.serve()
        pair.worker.sendall(message(Message.CHANNEL_DATA, dumps_internal(b"after")))
        pair.serve()
        assert len(pair.errors) == 1
        assert b"after" not in pair.received
        other.worker.sendall(message(Message.CHANNEL_DATA, dumps_internal(b"fine")))
        other.serve()
        assert other.received == [b"fine"]
        assert other.errors == []


@property_based
@given(
    junk=st.binary(max_size=60)
    | st.builds(
        message,
        st.sampled_from(sorted(Message._types)),
        # Not "K", which asks for a list of some length: see the test of memory below.
        st.lists(st.sampled_from(b"ABCDEFGHIJLMNOPQRSTU@\0\1\2"), max_size=20).map(bytes),
        st.integers(-2, 5),
    )
)
def test_junk_raises_nothing_in_the_main_loop(junk: bytes) -> None:
    with gateways() as [pair]:
        pair.worker.sendall(junk)
        pair.serve()
        pair.worker.close()
        pair.serve()
        assert len(pair.errors) <= 1


def test_a_short_message_cannot_ask_for_much_memory() -> None:
    """A list's length travels before its items, and a worker may lie about it."""
    with gateways() as [pair]:
        lie = b"K" + (20_000_000).to_bytes(4, "big") + b"Q"
        pair.worker.sendall(message(Message.CHANNEL_DATA, lie))
        tracemalloc.start()
        try:
            pair.serve()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 2_000_000
        assert len(pair.errors) == 1


def test_a_worker_that_is_gone_does_not_keep_the_controller() -> None:
    with gateways() as [pair]:
        pair.worker.close()
        with pytest.raises(OSError):
            pair.channel.send(b"[]")
        assert pair.gateway.drain()
        pair.gateway.close()
        pair.gateway.close()


def test_a_worker_that_does_not_read_keeps_nobody_waiting_and_misses_nothing() -> None:
    """It runs a test: what it is told meanwhile it gets afterwards, each command whole."""
    told = [["runtests", {"indices": list(range(n, n + 100_000))}] for n in range(3)]
    begin = time.monotonic()
    with gateways() as [pair]:
        for command in told:
            pair.channel.send(json.dumps(command).encode())
        assert time.monotonic() - begin < 10
        worker = WorkerChannel(pair.worker)
        found: list[Any] = []
        with no_longer_than(20):
            while len(found) < len(told):
                found += worker.commands(wait=False)
                pair.events.poll(0)
            pair.channel.send(b'["shutdown", {}]')
            assert worker.commands(wait=True) == [("shutdown", {})]
        assert found == [tuple(command) for command in told]
        assert pair.errors == []
        assert not pair.gateway._clone_io.unsent


def test_a_worker_that_never_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing follows half a command: the worker sees the end of its channel."""
    monkeypatch.setattr(gateway_module, "MAX_UNSENT_BYTES", 1_000_000)
    with gateways() as [pair]:
        deaf: list[str] = []
        pair.gateway.on_deaf = deaf.append
        for _ in range(3):
            with suppress(OSError):  # after the end
                pair.channel.send(b"x" * 900_000)
        assert len(deaf) == 1
        assert "has not read" in deaf[0]
        assert pair.errors == []
        pair.worker.settimeout(5)
        received = b""
        while piece := pair.worker.recv(65536):
            received += piece
        assert len(received) < 900_000


# -- the queue ---------------------------------------------------------------------------------


@property_based
@given(st.lists(st.tuples(st.text(), st.dictionaries(st.text(), st.integers()))))
def test_events_leave_the_queue_in_their_order(events: list[tuple[str, dict[str, Any]]]) -> None:
    fifo = EventQueue()
    for event in events:
        fifo.put(event)
    assert [fifo.get(timeout=0) for _ in events] == events
    with pytest.raises(queue.Empty):
        fifo.get(block=False)
    fifo.close()


def test_an_empty_queue_is_waited_for_as_long_as_asked_for() -> None:
    fifo = EventQueue()
    start = time.monotonic()
    with pytest.raises(queue.Empty):
        fifo.get(timeout=0.05)
    assert 0.05 <= time.monotonic() - start < 5
    with pytest.raises(queue.Empty):
        fifo.get(block=False, timeout=10)
    with pytest.raises(queue.Empty):
        fifo.get(block=False)
    fifo.close()


def test_a_readable_file_feeds_the_queue_while_it_is_registered() -> None:
    """Also if its callback unregisters it, or puts several events, or none at first."""
    ours, theirs = socket.socketpair()
    fifo = EventQueue()

    def callback() -> None:
        data = ours.recv(100)
        if data == b"quiet":
            theirs.send(b"loud")
            return
        fifo.put((data.decode(), {}))
        fifo.put(("and more", {}))
        if data == b"last":
            fifo.unregister(ours)

    with ours, theirs, no_longer_than(30):
        fifo.register(ours, callback)
        theirs.send(b"quiet")
        assert [fifo.get(), fifo.get(timeout=5)] == [("loud", {}), ("and more", {})]
        theirs.send(b"last")
        assert [fifo.get(), fifo.get(timeout=5)] == [("last", {}), ("and more", {})]
        theirs.send(b"unseen")
        with pytest.raises(queue.Empty):
            fifo.get(timeout=0.01)
        fifo.unregister(ours)
        fifo.close()


def test_dense_messages_are_taken_in_batches_and_sparse_ones_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker with trivial tests would pay for waking the controller, once a test."""
    ours, theirs = socket.socketpair()
    clock = Clock(theirs)
    monkeypatch.setattr("pytest_forkd.channel.event_queue.time", clock)
    fifo = EventQueue()

    def receive() -> None:
        for _ in ours.recv(1000):
            fifo.put(("x", {}))

    def batches(messages: int, interval: float) -> int:
        """How often the queue waited for so many messages, one sent in each ``interval``."""
        clock.interval = interval
        waits = 0
        for _ in range(messages):
            if not fifo._events:
                waits += 1
                clock.pass_by(interval)
            assert fifo.get(timeout=5) == ("x", {})
        return waits

    with ours, theirs, no_longer_than(30):
        fifo.register(ours, receive)
        assert batches(50, 0.0021) == 50, "tests of 2 ms wait for nothing"
        assert not clock.slept
        assert batches(400, 0.0003) < 100
        assert set(clock.slept) == {0.004}, "that long is what a message may wait"
        batches(10, 0.0021)
        clock.slept.clear()
        assert batches(50, 0.0021) == 50, "it has got quiet again"
        assert not clock.slept
        batches(400, 0.0003)
        while fifo._events:
            fifo.get()
        clock.slept.clear()
        with pytest.raises(queue.Empty):
            fifo.get(block=False)
        assert not clock.slept, "nobody wanted to wait"
    fifo.close()


class Clock:
    """In the place of the module ``time``: one byte is sent in each ``interval`` of its time."""

    def __init__(self, sock: socket.socket) -> None:
        self.now = self.sent = 0.0
        self.interval = 1.0
        self.slept: list[float] = []
        self._sock = sock

    def monotonic(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        while self.sent + self.interval <= self.now:
            self.sent += self.interval
            self._sock.send(b"x")

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.pass_by(seconds)
