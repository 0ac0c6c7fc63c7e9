"""What runs in a guest: restoring it, and what it may not do where the kernel is shared."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import random
import socket
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_forkd.channel.exchange import Request
from pytest_forkd.channel.mux import control_frame, parse_control
from pytest_forkd.guest import restore as module
from pytest_forkd.guest.port import Port
from pytest_forkd.guest.relay import exchange
from pytest_forkd.guest.resources import Crowd, CrowdWatch, Resources
from pytest_forkd.guest.restore import SHARED_KERNEL, restore
from tests.unit import no_longer_than


def _message(now: float) -> dict[str, Any]:
    seed = base64.b64encode(os.urandom(64)).decode()
    return {"time": now, "seed": seed, "hostname": "forkd-test"}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What is asked of the kernel, which does nothing of it."""
    asked: list[Any] = []
    monkeypatch.delenv(SHARED_KERNEL, raising=False)
    monkeypatch.setattr(time, "clock_settime", lambda clock, now: asked.append(("clock", now)))
    monkeypatch.setattr(socket, "sethostname", lambda name: asked.append(("hostname", name)))
    (tmp_path / "kernels").write_text("the kernel's")
    monkeypatch.setattr(module, "_BOOT_ID", str(tmp_path / "kernels"))
    monkeypatch.setattr(module, "_OWN_BOOT_ID", str(tmp_path / "own"))

    def mount(source: str, target: str, *more: object) -> None:
        asked.append(("mount", source, target, *more))
        os.unlink(target)
        os.link(source, target)

    monkeypatch.setattr(module, "mount", mount)

    def ioctl(file: Any, request: int, data: bytes = b"") -> None:
        asked.append((hex(request), data))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return asked


def test_a_clone_gets_clock_name_and_entropy_of_its_own(kernel: list[Any]) -> None:
    now = time.time() - 1000
    message = _message(now)
    assert restore(message) == []
    assert ("clock", now) in kernel
    assert ("hostname", "forkd-test") in kernel
    seed = base64.b64decode(message["seed"])
    # struct rand_pool_info: bits, bytes, and the pool; then the generator starts from it.
    assert [each for each in kernel if each[0].startswith("0x")] == [
        ("0x40085203", struct.pack("ii", 512, 64) + seed),
        ("0x5207", b""),
    ]


def test_a_clock_that_is_right_is_left_alone(kernel: list[Any]) -> None:
    assert restore(_message(time.time())) == []
    assert [each for each in kernel if each[0] == "clock"] == []


def test_each_clone_has_a_boot_id_of_its_own(kernel: list[Any], tmp_path: Path) -> None:
    """One that is cloned from a clone, too; and what is covered is not covered again."""
    found = []
    for _ in range(2):
        assert restore(_message(0.0)) == []
        text = (tmp_path / "kernels").read_text("ascii")
        assert text == f"{uuid.UUID(text.strip())}\n", "as the kernel writes it"
        found.append(text)
    assert found[0] != found[1]
    assert [each for each in kernel if each[0] == "mount"] == [
        ("mount", str(tmp_path / "own"), str(tmp_path / "kernels"), None, 4096, None)
    ]


def test_what_is_not_allowed_is_told(kernel: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """And the rest is done."""

    def refuse(*args: object) -> None:
        raise PermissionError

    monkeypatch.setattr(time, "clock_settime", refuse)
    monkeypatch.setattr(fcntl, "ioctl", refuse)
    monkeypatch.setattr(module, "mount", refuse)
    assert restore(_message(0.0)) == ["clock", "entropy", "boot_id"]
    assert kernel == [("hostname", "forkd-test")]


def test_a_kernel_that_is_shared_is_left_alone(
    kernel: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a "guest" is a process of this machine, as in these tests."""
    monkeypatch.setenv(SHARED_KERNEL, "1")
    assert restore(_message(0.0)) == ["clock", "hostname", "entropy", "boot_id"]
    assert kernel == []


def test_pythons_generator_starts_anew(kernel: list[Any]) -> None:
    """Two clones draw differently, even if the kernel's generator were the same in both."""
    random.seed(1)
    state = random.getstate()
    restore(_message(0.0))
    first = random.random()
    random.setstate(state)
    restore(_message(0.0))
    assert random.random() != first


# -- the port ----------------------------------------------------------------------------------


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Port]:
    """A guest's port, which :func:`ask` can reach."""
    path = str(tmp_path / "s")
    monkeypatch.setenv("PYTEST_FORKD_SOCKET", path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    with contextlib.closing(Port(listener)) as port:
        yield port


def ask(request: Request, answers: list[str]) -> threading.Thread:
    """Make an exchange in a thread; its answer is appended."""
    thread = threading.Thread(target=lambda: answers.append(exchange(request.encode())))
    thread.start()
    return thread


def test_what_comes_while_the_port_is_flushed_is_not_waited_for(port: Port) -> None:
    """A controller may give an order before it confirms what it has just been told."""
    answers: list[str] = []
    order = control_frame({"fork": {}})
    poll = ask(Request(1, "a", wait=5.0, limit=1000), answers)
    with no_longer_than(5):
        while not port.opened():
            port.wait(0.1)
    port.control({"warm": {}})
    threads = [poll]

    def go_on() -> None:
        poll.join()
        received = len(control_frame({"warm": {}}))
        threads.append(ask(Request(1, "a", 0, 0, data=order), answers))
        threads[-1].join()
        threads.append(ask(Request(1, "a", len(order), received, wait=5.0, limit=1000), answers))

    controller = threading.Thread(target=go_on)
    controller.start()
    assert port.flush(5.0)
    controller.join()
    start = time.monotonic()
    port.wait(4.0)
    assert time.monotonic() - start < 1.0
    assert [parse_control(payload) for _channel, payload in port.frames()] == [{"fork": {}}]
    port.control({"forked": {}})
    while len(answers) < 3:
        port.wait(0.1)
    for thread in threads:
        thread.join()


# -- what a test can take of a guest -------------------------------------------------------------


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A guest's ``/proc``: two file systems that can be written to, and few processes."""
    monkeypatch.delenv(SHARED_KERNEL, raising=False)
    proc = tmp_path / "proc"
    (proc / "sys/kernel").mkdir(parents=True)
    (proc / "self").mkdir()
    (proc / "loadavg").write_text("0.20 0.18 0.12 1/80 11206\n")
    (proc / "sys/kernel/threads-max").write_text("7800\n")
    (proc / "sys/kernel/pid_max").write_text("32768\n")
    (proc / "meminfo").write_text("MemTotal:  1000000 kB\nMemFree: 5 kB\nMemAvailable: 600000 kB\n")
    (proc / "self/mounts").write_text(
        "overlay / overlay rw 0 0\nproc /proc proc rw 0 0\n"
        "/dev/vdb /read\\040only ext4 ro 0 0\ntmpfs /my\\040files tmpfs rw 0 0\n"
    )
    return proc


#: Free blocks of 4 KiB, and free inodes, by the place.
Places = dict[str, tuple[int, int]]


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Places:
    """The file systems' free space; a test changes it."""
    places = {"/": (50_000, 9_000), "/read only": (50_000, 9_000), "/my files": (50_000, 9_000)}

    def statvfs(place: str) -> os.statvfs_result:
        if place == "/proc":
            return os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
        blocks, inodes = places[place]
        flag = os.ST_RDONLY if place == "/read only" else 0
        return os.statvfs_result(
            (4096, 4096, 99_999, blocks, blocks, 9_999, inodes, inodes, flag, 255)
        )

    monkeypatch.setattr(os, "statvfs", statvfs)
    return places


@pytest.mark.parametrize(
    ("place", "free", "full"),
    [
        ("/", (0, 9_000), True),
        ("/", (255, 9_000), True),
        ("/", (256, 9_000), False),
        ("/my files", (10, 9_000), True),
        ("/my files", (50_000, 10), True),
        ("/read only", (0, 0), False),
    ],
)
def test_a_file_system_that_a_test_has_filled(
    proc: Path, places: Places, place: str, free: tuple[int, int], full: bool
) -> None:
    resources = Resources(proc)
    assert resources.exhausted() is None
    places[place] = free
    assert resources.exhausted() == (f"the file system of {place} is full" if full else None)
    assert Resources(proc).exhausted() is None, "it was full when this worker began"


def test_a_file_system_that_goes_away_is_not_full(proc: Path, places: Places) -> None:
    resources = Resources(proc)

    def statvfs(place: str) -> os.statvfs_result:
        raise FileNotFoundError(place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "statvfs", statvfs)
        assert resources.exhausted() is None


@pytest.mark.parametrize(
    ("tasks", "allowed", "memory", "told"),
    [
        (80, 7800, 600_000, None),
        (7019, 7800, 600_000, None),
        (7020, 7800, 600_000, "it has 7020 processes and threads, of 7800 at most"),
        (7020, 7800, 40_000, "it has 7020 processes and threads, of 7800 at most"),
        (390, 400, 600_000, "it has 390 processes and threads, of 400 at most"),
        (2000, 7800, 600_000, None),
        (2000, 7800, 40_000, "it has 2000 processes and threads, and no memory left"),
        (900, 7800, 40_000, None),
    ],
)
def test_processes_that_leave_no_room_for_others(
    proc: Path, places: Places, tasks: int, allowed: int, memory: int, told: str | None
) -> None:
    (proc / "loadavg").write_text(f"9.99 0.18 0.12 17/{tasks} 11206\n")
    (proc / "sys/kernel/threads-max").write_text(f"{allowed}\n")
    (proc / "meminfo").write_text(f"MemTotal: 1000000 kB\nMemAvailable: {memory} kB\n")
    crowd = Resources(proc).crowd()
    assert crowd == (None if told is None else Crowd(tasks, 17, told, starved=memory == 40_000))
    assert Resources(proc).exhausted() == told


def test_a_kernel_that_does_not_tell_its_memory_still_tells_of_a_crowd(
    proc: Path, places: Places
) -> None:
    """Memory is not asked for where there is room, and a crowd is one without it."""
    (proc / "meminfo").unlink()
    assert Resources(proc).crowd() is None
    (proc / "loadavg").write_text("9.99 0.18 0.12 17/7500 11206\n")
    reason = "it has 7500 processes and threads, of 7800 at most"
    assert Resources(proc).crowd() == Crowd(7500, 17, reason, starved=False)


@pytest.mark.parametrize(
    ("crowds", "stays"),
    [
        # One look a second: tasks and those that want to run.
        ([(400, 390)] * 10, False),
        ([(400, 390)] * 11, True),
        ([(400, 390)] * 9 + [None] + [(400, 390)] * 10, False),
        # It grows, as the kernel lets it for a while, then each process has its turn.
        ([(400, 390)] * 9 + [(588, 580)] * 9 + [(588, 450)] * 9 + [(588, 300)] * 9, False),
        ([(588, 580 - 7 * n) for n in range(80)], False),
        # Its end is told by neither a number that swings nor by one that has been there before.
        ([(400, 390), (380, 370)] * 5 + [(400, 390)], True),
        ([(588, 200)] + [(400, 390)] * 9 + [(588, 200)], True),
        # Nobody wants to run: the test waits for what cannot come.
        ([(400, 1)] * 11, True),
    ],
)
def test_a_crowd_that_stays(crowds: list[tuple[int, int] | None], stays: bool) -> None:
    watch = CrowdWatch()
    found = [
        watch.stays(None if crowd is None else Crowd(*crowd, reason="many"), 100.0 + second)
        for second, crowd in enumerate(crowds)
    ]
    assert found == [False] * (len(crowds) - 1) + [stays]


@pytest.mark.parametrize(
    ("memory", "stays"),
    [
        # Fewer and fewer want to run, since all of them wait for memory; one look a second.
        ([True, True], True),
        ([False] * 9 + [True, True], True),
        ([True, False] * 4, False),
        ([True, None] * 4, False),
    ],
)
def test_a_crowd_without_memory_is_not_on_its_way(memory: list[bool | None], stays: bool) -> None:
    """It stood still for a minute and more, and so did our process in that guest."""
    watch = CrowdWatch()
    found = []
    for second, starved in enumerate(memory):
        crowd = None if starved is None else Crowd(588, 580 - 70 * (second % 8), "many", starved)
        found.append(watch.stays(crowd, 100.0 + second))
    assert found == [False] * (len(memory) - 1) + [stays]


def test_every_crowd_comes_to_its_end() -> None:
    """Also one that changes as slowly as is let be: there are only so many tenths."""
    watch = CrowdWatch()
    tasks, running = 7_020.0, 7_020.0
    for second in range(1500):
        if second % 9 == 8:
            tasks, running = min(tasks * 1.11, 32_768.0), max(running * 0.89, 1.0)
        if watch.stays(Crowd(int(tasks), int(running), "many"), float(second)):
            return
    raise AssertionError("it was let be for 1500 seconds")


def test_what_a_kernel_does_not_tell_is_not_missed(tmp_path: Path) -> None:
    assert Resources(tmp_path).exhausted() is None


def test_where_the_kernel_is_shared_nothing_is_a_tests_doing(
    proc: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHARED_KERNEL, "1")
    (proc / "loadavg").write_text("0.20 0.18 0.12 1/7800 11206\n")
    resources = Resources(proc)
    places["/"] = (0, 0)
    assert resources.exhausted() is None
