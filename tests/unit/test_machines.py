"""Machines whose guests are hostile, broken or slow: each is ended alone, and says why."""

from __future__ import annotations

import base64
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pytest_forkd import __version__
from pytest_forkd.backends.base import BackendError, RunRequest, WorkerEnd
from pytest_forkd.channel.event_queue import EventQueue
from pytest_forkd.channel.exchange import Answer, Request
from pytest_forkd.channel.exec_stream import ExecStream, StreamError
from pytest_forkd.channel.frames import MAX_FRAME_BYTES
from pytest_forkd.channel.mux import (
    CONTROL,
    FILES,
    MAX_DATA_BYTES,
    STDERR,
    WORKER,
    Demultiplexer,
    control_frame,
    data_frames,
    parse_control,
)
from pytest_forkd.machines import fleet
from pytest_forkd.machines import host as hosts_module
from pytest_forkd.machines import machine as machine_module
from pytest_forkd.machines import pulse as pulse_module
from pytest_forkd.machines.backend import Host, MachinesBackend, Place
from pytest_forkd.machines.machine import MachineError
from tests.unit import no_longer_than

HELLO = {
    "state": "rest",
    "version": __version__,
    "python": "3.11.7",
    "executable": "/usr/bin/python3",
    "version_info": [3, 11, 7, "final", 0],
    "platform": "linux",
    "pid": 2,
    "preload_failures": {},
}
WARM = {
    "level": "collection",
    "ids": ["test_a.py::test_a", "test_a.py::test_b"],
    "fixtures": None,
    "events": [],
    "findings": [],
    "seconds": 0.5,
    "modules": ["os"],
}
EXIT = {"worker": "gw0", "status": 0, "dump": "", "out": "", "err": ""}


class Guest:
    """The other end of a machine's stream: a script says what it answers.

    :param answer: called with each message; what it returns is sent, as bytes or as messages.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], list[Any]]) -> None:
        self.answer = answer
        self.to_controller: queue.Queue[bytes | Exception] = queue.Queue()
        self.demultiplexer = Demultiplexer(CONTROL, WORKER, FILES)
        self.heard: list[dict[str, Any]] = []
        self.commands = b""
        self.closed = threading.Event()

    def send(self, data: bytes) -> None:
        for channel, payload in self.demultiplexer.feed(data):
            if channel == WORKER:
                self.commands += payload
                continue
            message = parse_control(payload)
            self.heard.append(message)
            for each in self.answer(message):
                self.say(each)

    def say(self, what: Any) -> None:
        if isinstance(what, dict):
            what = control_frame(what)
        self.to_controller.put(what)

    def receive(self, timeout: float | None = None) -> bytes:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.closed.is_set():
            try:
                found = self.to_controller.get(timeout=0.02)
            except queue.Empty:
                if deadline is not None and time.monotonic() > deadline:
                    return b""
                continue
            if isinstance(found, Exception):
                raise found
            return found
        raise StreamError("closed")

    def confirm(self) -> None:
        pass

    def close(self) -> None:
        self.closed.set()


def good(message: dict[str, Any]) -> list[Any]:
    """What a guest of ours answers at level ``imports``."""
    if "restore" in message:
        assert len(base64.b64decode(message["restore"]["seed"])) == 64
        return [{"hello": HELLO}, {"restored": {"failed": []}}]
    if "collect" in message:
        return [{"warm": {"level": "imports"}}]
    if "fork" in message:
        return [{"forked": {"worker": message["fork"]["worker"], "pid": 5}}]
    if "ping" in message:
        return [{"pong": message["ping"]}]
    return []


def has_worker(guest: Guest) -> bool:
    """Whether it was told to fork one."""
    return any("fork" in message for message in guest.heard)


def saying(*what: Any) -> Callable[[dict[str, Any]], list[Any]]:
    """A guest that is good until it has a worker, and says this then."""

    def answer(message: dict[str, Any]) -> list[Any]:
        return [*good(message), *(what if "fork" in message else ())]

    return answer


class FakeHost(Host):
    def __init__(self, name: str, guests: list[Guest]) -> None:
        self.name = name
        self.guests = guests
        self.batches: list[int] = []
        self.removed: list[str] = []
        self.branched: list[str] = []
        self.up = True

    def make(self, count: int, branch: object | None) -> list[Place]:
        if not self.up:
            raise MachineError(f"{self.name} is down")
        self.batches.append(count)
        places: list[Place] = []
        for _ in range(count):
            guest = self.guests.pop(0)
            name = f"machine {sum(self.batches) - count + len(places)} at {self.name}"
            places.append(
                Place(name, lambda guest=guest: guest, lambda name=name: self.removed.append(name))  # type: ignore[misc]
            )
        return places

    def branch(self, place: Place) -> object:
        self.branched.append(place.name)
        return "branch"

    def alive(self) -> bool:
        return self.up

    def close(self) -> None:
        pass


class FakeBackend(MachinesBackend):
    name = "fake"
    rebuild = "make it anew"

    def __init__(self, *hosts: FakeHost) -> None:
        super().__init__()
        self.hosts = hosts

    def _find_hosts(self) -> list[Host]:
        usable: list[Host] = [host for host in self.hosts if host.up]
        if not usable:
            raise BackendError("no host")
        return usable

    def _set_up(self, machine: Any, hello: dict[str, Any]) -> None:
        pass

    def describe_parent(self) -> str:
        return ""


class Session:
    """Stands where the session stands: listens, and lets the backend's events happen."""

    def __init__(self, *hosts: FakeHost, level: str = "imports", workers: int = 2) -> None:
        self.events = EventQueue()
        self.backend = FakeBackend(*hosts)
        self.answers: list[dict[str, Any]] = []
        self.lost: list[str] = []
        self.ends: dict[str, WorkerEnd] = {}
        self.channels: dict[str, socket.socket] = {}
        nodes = ["x"] * workers
        request = RunRequest([], "/", {}, [], [], True, {}, level, level, nodes=nodes)
        self.backend.start()
        self.backend.begin(request, self.events, self)

    def on_collector_message(self, message: dict[str, Any]) -> None:
        self.answers.append(message)

    def on_collector_lost(self, reason: str, end: WorkerEnd | None = None) -> None:
        self.lost.append(reason)

    def on_worker_exit(self, worker: str, end: WorkerEnd) -> None:
        assert worker not in self.ends
        self.ends[worker] = end

    def until(self, condition: Callable[[], object]) -> None:
        with no_longer_than(10):
            while not condition():
                self.events.poll(0.05)

    def settle(self, seconds: float = 0.1) -> None:
        """Let happen what is about to happen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.events.poll(0.01)

    def spawn(self, *workers: str) -> None:
        for worker in workers:
            ours, theirs = socket.socketpair()
            self.channels[worker] = ours
            with theirs:
                self.backend.spawn(worker, "input", None, theirs, -1)

    def close(self) -> None:
        self.backend.close()
        for channel in self.channels.values():
            channel.close()
        self.events.close()


@pytest.fixture
def sessions() -> Iterator[Callable[..., Session]]:
    made: list[Session] = []

    def make(*args: Any, **kwargs: Any) -> Session:
        made.append(Session(*args, **kwargs))
        return made[-1]

    yield make
    for session in made:
        session.close()


Sessions = Callable[..., Session]


def test_a_host_that_does_not_let_go_is_not_waited_for_long(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends, and says that something is left; it said nothing."""
    monkeypatch.setattr(fleet, "CLOSE_LIMIT", 0.1)
    quick, slow, let_go = FakeHost("quick", []), FakeHost("slow", []), threading.Event()
    monkeypatch.setattr(slow, "close", lambda: let_go.wait(10))
    for host, left in ((quick, []), (slow, ["machines are still being removed after 0.1 seconds"])):
        session = sessions(host, workers=0)
        with no_longer_than(5):
            session.backend.close()
        assert session.backend.leftovers() == left
    let_go.set()


def test_two_workers_in_two_machines(sessions: Sessions) -> None:
    """Bytes go to and fro, each exit is told, and each machine is removed."""
    guests = [Guest(good), Guest(good)]
    host = FakeHost("h", list(guests))
    session = sessions(host)
    session.until(lambda: session.answers)
    assert session.answers == [{"warm": {"level": "imports"}}]
    session.spawn("gw0", "gw1")
    session.until(lambda: all(has_worker(guest) for guest in guests))
    assert host.batches == [2]
    session.channels["gw0"].send(b"run this")
    session.until(lambda: guests[0].commands == b"run this" or guests[1].commands == b"run this")
    first = guests[0] if guests[0].commands else guests[1]
    first.say(data_frames(WORKER, b"a report"))
    first.say({"exit": {**EXIT, "status": 9}})
    session.until(lambda: "gw0" in session.ends)
    assert session.channels["gw0"].recv(100) == b"a report"
    assert session.ends["gw0"] == WorkerEnd("signal SIGKILL")
    session.until(lambda: len(host.removed) == 1)
    assert "gw1" not in session.ends
    guests[0 if first is guests[1] else 1].say(
        {"exit": {**EXIT, "worker": "gw1", "status": 9, "reason": "it was given\x1b[31m up"}}
    )
    session.until(lambda: "gw1" in session.ends)
    assert session.ends["gw1"] == WorkerEnd("it was given\\x1b[31m up")
    session.close()
    assert len(host.removed) == 2


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        (b"\x00\x00\x00\x00\x02{]", "cannot be decoded"),
        (control_frame({}), "not one key"),
        (control_frame({"exit": EXIT, "forked": {}}), "not one key"),
        (b"\x00\x00\x00\x00\x02[]", "not a JSON object"),
        (b"\x00" + (MAX_FRAME_BYTES + 1).to_bytes(4, "big"), "bytes, of which"),
        (bytes([WORKER]) + (MAX_DATA_BYTES + 1).to_bytes(4, "big"), "bytes, of which"),
        (bytes([STDERR]) + b"\xff\xff\xff\xff", "bytes, of which"),
        (bytes([FILES]) + b"\0\0\0\0", "nothing may be sent on channel 3"),
        (b"\xff" * 100, "nothing may be sent on channel 255"),
        ({"import": "os"}, "does not say 'import'"),
        ({"exit": "now"}, "Expected `object`, got `str`"),
        ({"exit": {**EXIT, "status": -1}}, "Expected `int` >= 0"),
        ({"exit": {**EXIT, "status": True}}, "got `bool`"),
        ({"exit": {**EXIT, "status": 1 << 40}}, "Expected `int` <= 65535"),
        ({"exit": {**EXIT, "out": ["x"]}}, "Expected `str`, got `array`"),
        ({"exit": {**EXIT, "reason": 9}}, "Expected `str | null`, got `int`"),
        ({"exit": {**EXIT, "worker": "gw1"}}, "speaks of the worker 'gw1'"),
        ({"fork_failed": {"worker": "gw1", "error": ""}}, "speaks of the worker 'gw1'"),
        ({"warm": {"level": "imports"}}, "said 'warm', which nobody had asked for"),
        ({"warm": WARM}, "said 'warm'"),
        ({"unsuitable": {"findings": [], "files": []}}, "of length >= 1"),
        ({"usage_error": ["all wrong"]}, "said 'usage_error'"),
        ({"hello": HELLO}, "said 'hello'"),
        ({"forked": {"worker": "gw0"}}, "said 'forked', which nobody had asked for"),
        ({"pong": 1}, "answers 1, which it was not asked"),
        ({"pong": "1"}, "str instead of a number"),
        ({"over": {"status": 3}}, "has ended with exit code 3"),
        (StreamError("the line is dead"), "the line is dead"),
        (b"\x00\x00\x00\xc3\x50" + b"[" * 50_000, "nested more than 100 levels"),
    ],
)
def test_a_hostile_guest_ends_its_own_worker_only(
    sessions: Sessions, what: Any, complaint: str
) -> None:
    """With a reason that says what it has done; the other one goes on."""
    hostile, other = Guest(saying(what)), Guest(good)
    host = FakeHost("h", [hostile, other])
    session = sessions(host)
    session.until(lambda: session.answers)
    session.settle()
    session.spawn("gw0")
    session.until(lambda: "gw0" in session.ends)
    assert complaint in session.ends["gw0"].reason
    assert session.ends["gw0"].reason.startswith("machine 0 at h: ")
    assert not session.ends["gw0"].clean
    session.until(lambda: host.removed == ["machine 0 at h"])
    session.spawn("gw1")
    session.until(lambda: has_worker(other))
    other.say({"exit": {**EXIT, "worker": "gw1"}})
    session.until(lambda: "gw1" in session.ends)
    assert session.ends["gw1"] == WorkerEnd("exit code 0", clean=True)


def test_a_worker_that_does_not_exist_cannot_speak(sessions: Sessions) -> None:
    """A machine at rest that sends reports."""

    def answer(message: dict[str, Any]) -> list[Any]:
        return [*good(message), *([data_frames(WORKER, b"x")] if "collect" in message else [])]

    session = sessions(FakeHost("h", [Guest(answer)]), workers=1)
    session.until(lambda: session.answers)
    session.settle()
    assert session.backend._entries == {}


def test_two_exits_are_one(sessions: Sessions) -> None:
    """What comes after the end is of no interest."""
    session = sessions(FakeHost("h", [Guest(saying({"exit": EXIT}, {"exit": EXIT}))]), workers=1)
    session.spawn("gw0")
    session.until(lambda: session.ends)
    session.settle()
    assert session.lost == []


def test_silence_before_the_worker_exists(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers, and forks nothing."""
    monkeypatch.setattr(hosts_module, "FORK_LIMIT", 0.2)

    def answer(message: dict[str, Any]) -> list[Any]:
        return good(message) if "fork" not in message else []

    session = sessions(FakeHost("h", [Guest(answer)]), workers=1)
    session.spawn("gw0")
    session.until(lambda: session.ends)
    assert "within 0.2 seconds that its worker exists" in session.ends["gw0"].reason


def test_silence_while_it_collects(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user, who has nothing then, is told which machine it was."""
    monkeypatch.setattr(hosts_module, "COLLECT_LIMIT", 0.2)

    def answer(message: dict[str, Any]) -> list[Any]:
        return good(message) if "collect" not in message else []

    host = FakeHost("h", [Guest(answer)])
    session = sessions(host, workers=1)
    session.until(lambda: session.answers)
    (error,) = session.answers[0]["usage_error"]
    assert "machine 0 at h: it has not said within 0.2 seconds what it has collected" in error
    session.until(lambda: host.removed)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse_module, "INTERVAL", 0.1)
    monkeypatch.setattr(pulse_module, "LIMIT", 0.3)


@pytest.mark.usefixtures("impatient")
def test_a_guest_that_answers_may_take_its_time(sessions: Sessions) -> None:
    """Its worker's test takes many times longer than it may be silent."""
    guest = Guest(good)
    session = sessions(FakeHost("h", [guest]), workers=1)
    session.spawn("gw0")
    session.until(lambda: sum("ping" in message for message in guest.heard) >= 5)
    assert session.ends == {}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("trickle", [False, True])
def test_silence_after_its_worker_exists(sessions: Sessions, trickle: bool) -> None:
    """It says ``forked`` and is not heard again, or never comes to the end of what it says."""

    def answer(message: dict[str, Any]) -> list[Any]:
        return good(message) if "ping" not in message else []

    guest = Guest(answer)
    host = FakeHost("h", [guest])
    session = sessions(host, workers=1)
    session.spawn("gw0")
    session.until(lambda: has_worker(guest))
    if trickle:
        guest.say(bytes([WORKER]) + (1000).to_bytes(4, "big"))
        deadline = time.monotonic() + 5
        while not session.ends and time.monotonic() < deadline:
            guest.say(b"x")
            session.settle(0.02)
    session.until(lambda: session.ends)
    assert "machine 0 at h: it has not answered for 0.3 seconds" in session.ends["gw0"].reason
    session.until(lambda: host.removed)


@pytest.mark.usefixtures("impatient")
def test_a_guest_that_is_busy_for_ever(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its agent answers each exchange at once: whoever should take it is not listening."""
    script = Guest(good)
    taken = 0

    def way(line: str, timeout: float) -> str:
        nonlocal taken
        request = Request.decode(line)
        if has_worker(script) and request.received == len(said):
            time.sleep(0.01)
            return "busy"
        if request.data:
            taken += len(request.data)
            script.send(request.data)
        while not script.to_controller.empty():
            said.extend(script.to_controller.get())  # type: ignore[arg-type]
        time.sleep(0.01)
        start = request.received
        return Answer(taken, start, bytes(said[start:]) if request.limit else b"").encode()

    said = bytearray()
    way.chunk = 1 << 20  # type: ignore[attr-defined]
    host = FakeHost("h", [ExecStream(way)])  # type: ignore[list-item, arg-type]
    session = sessions(host, workers=1)
    session.spawn("gw0")
    session.until(lambda: session.ends)
    assert "it has not answered for 0.3 seconds" in session.ends["gw0"].reason
    session.until(lambda: host.removed)


def test_what_does_not_read_the_working_tree(sessions: Sessions) -> None:
    """One limit for all of it, however little is read at a time."""
    guest = Guest(good)
    machine = machine_module.Machine("m", lambda: guest, lambda _: None, lambda *_: None)
    begin = time.monotonic()
    with no_longer_than(5), pytest.raises(MachineError, match=r"within 0\.2 seconds"):
        machine.send_files((b"x" * (1 << 20) for _ in range(20)), limit=0.2)
    assert time.monotonic() - begin < 3
    machine.close()
    machine.release()


def test_silence_from_the_start(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that answers nothing at all is told to the user, who has nothing then."""
    monkeypatch.setattr(machine_module, "ANSWER_LIMIT", 0.2)
    monkeypatch.setattr(machine_module.Machine.expect, "__kwdefaults__", {"limit": 0.2})
    session = sessions(FakeHost("h", [Guest(lambda message: [])]), workers=1)
    session.until(lambda: session.answers)
    (error,) = session.answers[0]["usage_error"]
    assert "machine 0 at h: it did not say hello within 0.2 seconds" in error


@pytest.mark.parametrize(
    ("hello", "complaint"),
    [
        ({"version": "0.0.1"}, f"has pytest-forkd 0.0.1, this is {__version__}.\nBuild it anew"),
        ({"state": "collected"}, "not at rest"),
        ({"pid": "1"}, "str instead of a number"),
        ({"version_info": {}}, "dict instead of a list"),
        ({"preload_failures": {"a": 1}}, "int instead of text"),
    ],
)
def test_a_guest_that_is_none_of_ours(
    sessions: Sessions, hello: dict[str, Any], complaint: str
) -> None:
    """Refused before the run has begun, as bad input."""

    def answer(message: dict[str, Any]) -> list[Any]:
        return [{"hello": {**HELLO, **hello}}, {"restored": {"failed": []}}]

    session = sessions(FakeHost("h", [Guest(answer), Guest(answer)]))
    session.until(lambda: session.answers)
    session.settle()
    (message,) = session.answers
    assert complaint in message["usage_error"][0]


def test_a_slow_guest_is_told_the_time_again(sessions: Sessions) -> None:
    """The time in the message is old when it takes long; a guest that cannot set it is left."""

    def slow(failed: list[str]) -> Guest:
        def answer(message: dict[str, Any]) -> list[Any]:
            if "restore" not in message:
                return good(message)
            told = sum("restore" in each for each in guest.heard)
            if told < 3:
                time.sleep(0.1)
            hello = [{"hello": HELLO}] if told == 1 else []
            return [*hello, {"restored": {"failed": failed}}]

        guest = Guest(answer)
        return guest

    guests = [slow([]), slow(["clock"])]
    session = sessions(FakeHost("h", guests.copy()))
    session.until(lambda: all(any("collect" in m for m in g.heard) for g in guests))
    told, once = ([m["restore"] for m in g.heard if "restore" in m] for g in guests)
    assert len(once) == 1
    assert len(told) >= 3
    assert told[2]["time"] - told[0]["time"] >= 0.2
    assert len({each["hostname"] for each in told}) == 1
    assert len({each["seed"] for each in told}) == len(told)


# -- level collection --------------------------------------------------------------------------


def collecting(warm: dict[str, Any]) -> Callable[[dict[str, Any]], list[Any]]:
    def answer(message: dict[str, Any]) -> list[Any]:
        return [{"warm": warm}] if "collect" in message else good(message)

    return answer


def cloned(message: dict[str, Any]) -> list[Any]:
    """What a clone of one that has collected answers."""
    if "restore" in message:
        return [{"hello": {"state": "collected"}}, {"restored": {"failed": []}}]
    return good(message)


def test_one_machine_collects_and_its_branch_makes_the_workers(sessions: Sessions) -> None:
    """In one batch; the machine that collected goes."""
    host = FakeHost("h", [Guest(collecting(WARM)), Guest(cloned), Guest(cloned)])
    session = sessions(host, level="collection", workers=5)
    session.until(lambda: session.answers)
    warm = session.answers[0]["warm"]
    assert warm["ids"] == WARM["ids"]
    assert warm["modules"] == []  # a guest does not say what is imported here
    session.spawn("gw0", "gw1")
    session.until(lambda: not session.backend._orders)
    assert host.batches == [1, 2]
    assert host.branched == host.removed == ["machine 0 at h"]


@pytest.mark.parametrize(
    "change",
    [
        {"ids": "abc"},
        {"ids": [1]},
        {"events": [["start"], []]},
        {"events": [[1]]},
        {"findings": [{"what": "x", "path": 3, "lineno": 1}]},
        {"findings": [{"what": "x", "path": "y", "lineno": "1"}]},
        {"level": "root"},
        {"seconds": -1},
        {"seconds": float("nan")},
    ],
)
def test_a_collection_that_is_none(sessions: Sessions, change: dict[str, Any]) -> None:
    """Nothing of it is taken."""
    session = sessions(FakeHost("h", [Guest(collecting({**WARM, **change}))]), level="collection")
    session.until(lambda: session.answers)
    assert "no guest of ours would send" in session.answers[0]["usage_error"][0]


def test_hosts_share_the_workers_and_one_that_finds_other_tests_gets_none(
    sessions: Sessions,
) -> None:
    """Each has a collector of its own."""
    hosts = [
        FakeHost("a", [Guest(collecting(WARM)), Guest(cloned), Guest(cloned)]),
        FakeHost("b", [Guest(collecting(WARM)), Guest(cloned), Guest(cloned)]),
    ]
    session = sessions(*hosts, level="collection", workers=4)
    session.until(lambda: session.answers)
    session.spawn("gw0", "gw1", "gw2", "gw3")
    session.until(lambda: not session.backend._orders)
    assert [sum(host.batches) for host in hosts] == [3, 3]

    late = Guest(lambda message: [] if "collect" in message else good(message))
    hosts = [
        FakeHost("a", [Guest(collecting(WARM)), *(Guest(cloned) for _ in range(4))]),
        FakeHost("b", [late]),
    ]
    session = sessions(*hosts, level="collection", workers=4)
    session.until(lambda: session.answers)
    session.spawn("gw0", "gw1", "gw2", "gw3")
    session.until(lambda: any("collect" in message for message in late.heard))
    late.say({"warm": {**WARM, "ids": ["other"]}})
    session.until(lambda: not session.backend._orders)
    assert [sum(host.batches) for host in hosts] == [5, 1]


def test_a_host_that_goes_down_takes_its_workers_and_blames_nobody(sessions: Sessions) -> None:
    """What is asked for then is made elsewhere; without any host the collector is lost."""
    hosts = [
        FakeHost("a", [Guest(good)]),
        FakeHost("b", [Guest(good), Guest(good), Guest(good)]),
    ]
    guests = [host.guests[0] for host in hosts]
    session = sessions(*hosts)
    session.until(lambda: session.answers)
    session.spawn("gw0", "gw1")
    session.until(lambda: all(has_worker(guest) for guest in guests))
    hosts[0].up = False
    guests[0].say(StreamError("no route"))
    session.until(lambda: session.ends)
    ((_worker, end),) = session.ends.items()
    assert end.blameless
    assert "no route" in end.reason
    session.spawn("gw2")
    session.until(lambda: not session.backend._orders)
    assert sum(hosts[1].batches) == 2
    assert session.lost == []
    hosts[1].up = False
    guests[1].say(StreamError("no route either"))
    session.until(lambda: session.lost)
    with pytest.raises(BackendError):
        session.spawn("gw3")


def test_signals(sessions: Sessions) -> None:
    """SIGKILL needs no cooperation, others go to the guest."""
    guest = Guest(good)
    host = FakeHost("h", [guest])
    session = sessions(host, workers=1)
    session.spawn("gw0")
    session.until(lambda: has_worker(guest))
    session.backend.signal("gw0", 2)
    session.until(lambda: {"signal": {"worker": "gw0", "signum": 2}} in guest.heard)
    session.backend.signal("gw0", 9)
    assert session.ends["gw0"].reason == "signal SIGKILL"
    session.until(lambda: host.removed)


def test_the_request_that_guests_get() -> None:
    """No secret, and nothing of this interpreter."""
    import sys

    from pytest_forkd.machines.guest_environment import for_guests

    environ = {"FORKD_TOKEN": "t", "HOME": "/h", "TZ": "UTC", "PYTEST_ADDOPTS": "-x", "MY_A": "1"}
    path = ["/project/src", *sys.path, "/project"]
    request = RunRequest(["-q"], "/project", environ, path, ["pytest"], True, {}, "auto", "imports")
    sent = for_guests(request, ["MY_*", "FORKD_*"])
    assert sent["environ"] == {"TZ": "UTC", "PYTEST_ADDOPTS": "-x", "MY_A": "1"}
    assert sent["sys_path"][0] == "/project/src"
    assert sent["sys_path"][-1] == "/project"
    assert not [entry for entry in sent["sys_path"] if entry.startswith(sys.prefix)]
    assert "t" not in json.dumps(sent["environ"])
