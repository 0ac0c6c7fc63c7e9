"""The byte stream made of exchanges: exact whatever happens to them, and wary of the other end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_forkd.channel import exec_stream
from pytest_forkd.channel.exchange import Answer, BadExchange, Request
from pytest_forkd.channel.exec_stream import (
    EvalWay,
    ExecStream,
    ExecWay,
    StreamError,
    _text_of_repr,
    open_way,
)
from pytest_forkd.channel.frames import FrameError
from pytest_forkd.channel.mux import (
    CONTROL,
    FILES,
    MAX_DATA_BYTES,
    WORKER,
    Demultiplexer,
    control_frame,
    data_frames,
    parse_control,
)
from pytest_forkd.guest import relay
from pytest_forkd.guest.endpoint import MAX_UNREAD, Endpoint
from pytest_forkd.guest.port import Port
from tests.unit import property_based

payloads = st.lists(st.binary(min_size=1, max_size=60), max_size=12)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exec_stream, "_RETRY", 0.0)
    monkeypatch.setattr(exec_stream, "_MAX_RETRY", 0.01)


# -- the text of an exchange -------------------------------------------------------------------


@given(
    st.integers(0, 10**17), st.integers(0, 10**17), st.integers(0, 10**17), st.binary(max_size=99)
)
def test_an_exchange_survives_as_text(one: int, two: int, three: int, data: bytes) -> None:
    """Whatever is in it."""
    request = Request(one, "ab12", two, three, 1.25, 77, data)
    assert Request.decode(request.encode()) == request
    assert request.encode().isascii()
    answer = Answer(one, two, data)
    assert Answer.decode(answer.encode()) == answer


@given(st.text(max_size=80) | st.from_regex(r"(ok|x1)( [0-9a-zA-Z=-]{0,9}){0,9}", fullmatch=True))
def test_other_text_is_refused(text: str) -> None:
    """With the one exception that everybody handles."""
    for decode in (Request.decode, Answer.decode):
        with contextlib.suppress(BadExchange):
            decode(text)


def test_an_answer_that_was_cut_off_is_noticed() -> None:
    """The base64 of a part may be valid."""
    line = Answer(0, 0, b"abcdefgh").encode()
    with pytest.raises(BadExchange):
        Answer.decode(line[:-4])


# -- loss, repetition, delay, reordering -------------------------------------------------------


class _BadWeather:
    """A way to an endpoint on which exchanges are lost, repeated, delayed and overtaken."""

    def __init__(self, endpoint: Endpoint, fates: Iterator[int]) -> None:
        self.endpoint = endpoint
        self.fates = fates
        self.chunk = 16
        self.delayed: list[str] = []
        self.answers: list[str] = []

    def __call__(self, line: str, timeout: float) -> str:
        fate = next(self.fates, 0)
        if fate == 1:
            raise OSError("lost on the way there")
        if fate == 2:
            self.delayed.append(line)
            raise OSError("comes later, perhaps")
        if fate == 3 and self.delayed:
            self.deliver(self.delayed.pop(0))
        if fate == 4:
            self.deliver(line)
        answer = self.deliver(line)
        if fate == 5:
            raise OSError("lost on the way back")
        if fate == 6:
            return answer[: len(answer) // 2]
        if fate == 7 and self.answers:
            return random.Random(len(self.answers)).choice(self.answers)  # of an earlier one
        self.answers.append(answer)
        return answer

    def deliver(self, line: str) -> str:
        request = Request.decode(line)
        return self.endpoint.take(request) or self.endpoint.answer(request)


@property_based
@given(payloads, payloads, st.lists(st.integers(0, 7), max_size=120), st.randoms())
def test_both_directions_are_exact_in_bad_weather(
    down: list[bytes], up: list[bytes], fates: list[int], random: random.Random
) -> None:
    """Whatever happens to exchanges changes nothing but the time."""
    endpoint = Endpoint()
    stream = ExecStream(_BadWeather(endpoint, iter(fates)))
    sent = arrived = 0
    at_guest, at_controller = bytearray(), bytearray()
    todo = ["send"] * len(down) + ["write"] * len(up)
    random.shuffle(todo)
    down_left, up_left = list(down), list(up)
    stream.send(b"!")  # opens the stream
    for action in todo:
        if action == "send":
            stream.send(down_left.pop(0))
        else:
            data = up_left.pop(0)
            endpoint.write(data)
            sent += len(data)
        if random.random() < 0.5:
            at_guest += endpoint.read()
        if random.random() < 0.5 and arrived < sent:
            data = stream.receive()
            arrived += len(data)
            at_controller += data
    while arrived < sent:
        data = stream.receive()
        arrived += len(data)
        at_controller += data
    at_guest += endpoint.read()
    assert bytes(at_guest) == b"!" + b"".join(down)
    assert bytes(at_controller) == b"".join(up)


@property_based
@given(st.lists(st.integers(0, 7), max_size=60))
def test_a_new_stream_begins_anew_and_ends_the_old_one(fates: list[int]) -> None:
    """A guest that was cloned has the state of another stream; its requests may still come."""
    endpoint = Endpoint()
    old_weather = _BadWeather(endpoint, iter(fates))
    old = ExecStream(old_weather)
    old.send(b"something")
    endpoint.write(b"never received")
    new = ExecStream(_BadWeather(endpoint, iter(())), generation=2)
    new.send(b"ab")
    assert endpoint.read() == b"ab"
    for line in old_weather.delayed:
        assert old_weather.deliver(line) == "superseded"
    new.send(b"cd")
    endpoint.write(b"for the new one")
    assert endpoint.read() == b"cd"
    assert new.receive() == b"for the new one"
    with pytest.raises(StreamError, match="somebody else"):
        old.send(b"x")


def test_a_guest_takes_no_more_than_somebody_reads() -> None:
    """What is sent waits at the controller until there is room."""
    endpoint = Endpoint()

    class Transport(_BadWeather):
        def deliver(self, line: str) -> str:
            if len(endpoint._unread) == MAX_UNREAD:
                read.append(endpoint.read())
            return super().deliver(line)

    read: list[bytes] = []
    way = Transport(endpoint, iter(()))
    way.chunk = 300_000
    data = random.Random(1).randbytes(2 * MAX_UNREAD + 5)
    ExecStream(way).send(data)
    read.append(endpoint.read())
    assert b"".join(read) == data
    assert len(read[0]) == MAX_UNREAD


# -- a hostile or a dead guest -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (Answer(99, 0).encode(), "has taken 99 bytes"),
        ("gone /run/x: Connection refused", "has ended"),
        ("bad \x1b[2Jwhat", r"does not understand: \x1b"),
        ("superseded", "somebody else"),
    ],
)
def test_an_answer_that_ends_the_stream(answer: str, complaint: str) -> None:
    """Each with a reason."""
    stream = ExecStream(_Says(lambda _line: answer))
    with pytest.raises(StreamError) as caught:
        stream.send(b"x")
    assert complaint in str(caught.value)


def test_more_than_was_asked_for_ends_the_stream() -> None:
    """So an answer's size is bounded by more than good will."""
    stream = ExecStream(_Says(lambda _line: Answer(0, 0, b"x" * 17).encode()))
    with pytest.raises(StreamError, match="17 bytes at once"):
        stream.receive()


@pytest.mark.parametrize(
    "line", ["", "ok 1", "ok a b c d", "\udcff", "ok 0 0 1 !!!!", "ok " * 9999]
)
def test_nonsense_is_no_answer_and_silence_ends(line: str) -> None:
    """It is tried again until the guest is given up."""
    stream = ExecStream(_Says(lambda _line: line), silence_limit=0.1)
    with pytest.raises(StreamError, match=r"no answer for 0\.1 seconds"):
        stream.receive()
    assert stream.exchanges > 1


def test_a_busy_guest_is_not_given_up() -> None:
    """While it imports and collects, only the relay answers."""
    until = time.monotonic() + 0.4
    endpoint = Endpoint()
    good = _BadWeather(endpoint, iter(()))

    def answer(line: str) -> str:
        return "busy" if time.monotonic() < until else good.deliver(line)

    ExecStream(_Says(answer), silence_limit=0.1).send(b"abc")
    assert endpoint.read() == b"abc"


class _Says:
    chunk = 16

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer = answer

    def __call__(self, line: str, timeout: float) -> str:
        return self.answer(line)


# -- two ways into the guest -------------------------------------------------------------------


@dataclass
class _Evaluated:
    result: str | None = None
    error: str | None = None
    exit_code: int = 0


@dataclass
class _Executed:
    stdout: str
    stderr: str
    exit_code: int


def _evaluate(code: str, timeout: float = 0.0) -> _Evaluated:
    """What the guest's agent does."""
    try:
        return _Evaluated(repr(eval(code, {})))
    except Exception as exc:
        return _Evaluated(error=f"{type(exc).__name__}: {exc}", exit_code=1)


def _execute(args: list[str], timeout: float) -> _Executed:
    args = [sys.executable if args[0] == "python3" else args[0], *args[1:]]
    done = subprocess.run(args, capture_output=True, timeout=timeout, check=False)
    return _Executed(
        done.stdout.decode("utf-8", "replace"),
        done.stderr.decode("utf-8", "replace"),
        done.returncode,
    )


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Port]:
    """A guest's port, in a thread, that sends back what it gets on one channel."""
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    port = Port(listener)
    monkeypatch.setenv("PYTEST_FORKD_SOCKET", path)
    wake, waker = socket.socketpair()
    port.selector.register(wake, 1, "over")

    def serve() -> None:
        while "over" not in port.wait(None):
            if port.opened():
                port.control({"hello": {}})
            for channel, payload in port.frames():
                port.data(channel, payload)

    thread = threading.Thread(target=serve)
    thread.start()
    yield port
    waker.close()
    thread.join(5)
    assert not thread.is_alive()
    port.close()
    wake.close()
    sys.__dict__.pop("_pytest_forkd_relay", None)


@pytest.mark.parametrize("kind", ["eval", "exec"])
def test_megabytes_there_and_back(echo: Port, kind: str) -> None:
    """At the same time in both directions, and exact."""
    way = EvalWay(_evaluate) if kind == "eval" else ExecWay(_execute)
    way.install()
    stream = ExecStream(way)
    data = random.Random(7).randbytes(3_000_000 if kind == "eval" else 700_000)
    sender = threading.Thread(target=lambda: stream.send(data_frames(WORKER, data)))
    sender.start()
    demultiplexer = Demultiplexer(CONTROL, WORKER)
    back = bytearray()
    while len(back) < len(data):
        for channel, payload in demultiplexer.feed(stream.receive()):
            if channel == WORKER:
                back += payload
    sender.join()
    assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()


def test_eval_is_taken_where_it_works_and_exec_where_not(echo: Port) -> None:
    """Found out by trying."""
    assert isinstance(open_way(_evaluate, _execute), EvalWay)
    refuses = open_way(lambda code, timeout: _Evaluated(error="SyntaxError"), _execute)
    assert isinstance(refuses, ExecWay)
    assert isinstance(open_way(lambda code, timeout: _Evaluated(result="3"), _execute), ExecWay)
    assert isinstance(open_way(None, _execute), ExecWay)
    stream = ExecStream(refuses)
    stream.send(data_frames(WORKER, b"hello"))
    assert b"hello" in stream.receive()


def test_no_way_says_why_each_is_none() -> None:
    """So that it can be put right."""
    with pytest.raises(StreamError, match=r"eval: off; exec: python3: exit code 127, not found"):
        open_way(
            lambda code, timeout: _Evaluated(error="off"),
            lambda args, t: _Executed("", "not found", 127),
        )


def test_an_agent_that_was_started_anew_gets_the_relay_again(echo: Port) -> None:
    """Its interpreter has forgotten it."""
    way = open_way(_evaluate, _execute)
    stream = ExecStream(way)
    stream.send(b"")
    del sys.__dict__["_pytest_forkd_relay"]
    stream.send(data_frames(WORKER, b"x"))
    assert b"hello" in stream.receive()


def test_an_idle_stream_makes_few_exchanges(echo: Port) -> None:
    """Two a second are allowed."""
    way = open_way(_evaluate, _execute)
    stream = ExecStream(way)
    stream.send(data_frames(WORKER, b"x"))
    stream.receive()
    before = stream.exchanges

    def receive() -> None:
        with contextlib.suppress(StreamError):
            while True:
                stream.receive()

    thread = threading.Thread(target=receive)
    thread.start()
    time.sleep(2.0)
    assert stream.exchanges - before <= 4
    stream.close()
    ExecStream(way, generation=2).send(data_frames(WORKER, b"x"))  # answers what waits
    thread.join(5)
    assert not thread.is_alive()


def test_a_parent_that_has_ended_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens, or there is no socket at all."""
    monkeypatch.setenv("PYTEST_FORKD_SOCKET", str(tmp_path / "none"))
    stream = ExecStream(EvalWay(_evaluate))  # the first exchange installs the relay
    with pytest.raises(StreamError, match="has ended"):
        stream.receive()


def test_the_relay_says_that_nobody_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is there, but does not accept."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        monkeypatch.setenv("PYTEST_FORKD_SOCKET", str(path))
        start = time.monotonic()
        assert relay.exchange(Request(1, "a").encode()) == "busy"
        assert 1.5 < time.monotonic() - start < 4
    assert relay.exchange("nonsense") == "bad not a request"
    assert os.path.exists(path)


# -- frames ------------------------------------------------------------------------------------


@property_based
@given(
    st.lists(
        st.tuples(st.sampled_from([WORKER, FILES]), st.binary(max_size=50))
        | st.tuples(st.just(CONTROL), st.dictionaries(st.text(), st.integers())),
        max_size=10,
    ),
    st.integers(1, 40),
)
def test_frames_survive_however_the_stream_is_cut(
    frames: list[tuple[int, bytes | dict[str, int]]], step: int
) -> None:
    """The stream has no borders of its own."""
    data = b"".join(
        control_frame(value) if isinstance(value, dict) else data_frames(channel, value)
        for channel, value in frames
    )
    demultiplexer = Demultiplexer(CONTROL, WORKER, FILES)
    found = []
    for start in range(0, len(data), step):
        found += demultiplexer.feed(data[start : start + step])
    assert [
        (channel, parse_control(payload) if channel == CONTROL else payload)
        for channel, payload in found
    ] == frames


@pytest.mark.parametrize(
    "data",
    [
        b"\x07\0\0\0\0",
        bytes([FILES]) + b"\0\0\0\0",
        bytes([WORKER]) + (MAX_DATA_BYTES + 1).to_bytes(4, "big"),
        bytes([CONTROL]) + b"\xff\xff\xff\xff",
    ],
)
def test_a_bad_frame_is_refused_at_its_header(data: bytes) -> None:
    """Nothing is kept in wait for the rest."""
    with pytest.raises(FrameError):
        Demultiplexer(CONTROL, WORKER).feed(data)


@pytest.mark.parametrize("payload", [b"", b"[]", b"\xff", b"[" * 100_000, b"1"])
def test_a_control_message_is_an_object(payload: bytes) -> None:
    """Everything else is an error that is handled."""
    with pytest.raises(FrameError):
        parse_control(payload)


@pytest.mark.parametrize(
    "text", ["ok 1 2 aGFsbG8=", "", "it's", "both ' and \"", "a\\b", "bad ü\n"]
)
def test_a_string_comes_out_of_its_repr(text: str) -> None:
    assert _text_of_repr(repr(text)) == text


@pytest.mark.parametrize(
    "result",
    ["", "'", "None", "b'x'", "'a' + 'b'", "'a'('b')", "'x" + "\\x41" * 2000 + "'", "[" * 10_000],
)
def test_what_is_no_string_is_no_answer(result: str) -> None:
    with pytest.raises(Exception, match="no text"):
        _text_of_repr(result)
