"""Who dies with whom, and who is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings

import pytest

from pytest_forkd.parent import processes
from tests.unit import in_a_fork, no_longer_than

linux = pytest.mark.skipif("sys.platform != 'linux'", reason="needs prctl(2) and /proc")


def sleep_for_ever() -> None:
    """End only by a signal."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        signal.pause()


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@linux
def test_a_process_dies_with_its_parent() -> None:
    """However that ends; it holds the pipe's other end as long as it lives."""
    read, write = os.pipe()

    def middle() -> None:
        ready, tell = os.pipe()
        me = os.getpid()
        if os.fork() == 0:
            processes.die_with(me)
            os.write(tell, b"x")
            sleep_for_ever()
        os.read(ready, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    with no_longer_than(30):
        assert in_a_fork(middle) == -signal.SIGKILL
        os.close(write)
        assert os.read(read, 1) == b""
    os.close(read)


@linux
def test_a_process_whose_parent_has_gone_before_it_could_say_so_ends_at_once() -> None:
    def orphan() -> None:
        processes.die_with(os.getppid() + 1)

    assert in_a_fork(orphan) == 1


@linux
def test_children_are_listed_dead_or_alive() -> None:
    def check() -> None:
        assert processes.children() == []
        read, write = os.pipe()
        alive = os.fork()
        if alive == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        dead = os.fork()
        if dead == 0:
            os._exit(0)
        os.waitid(os.P_PID, dead, os.WEXITED | os.WNOWAIT)
        assert sorted(processes.children()) == sorted([alive, dead])
        os.close(write)
        os.waitpid(alive, 0)
        os.waitpid(dead, 0)
        assert processes.children() == []

    assert in_a_fork(check) == 0


@linux
@pytest.mark.parametrize("name", ["a b", "(", ") (", "c) R 1 1"])
def test_children_with_odd_names_are_listed(name: str) -> None:
    """A program's name is in the middle of what the kernel tells of it, and may hold anything."""

    def check() -> None:
        program = (
            "import sys; open('/proc/self/comm', 'w').write(sys.argv[1]);"
            "print(flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            assert processes.children() == [child.pid]
            child.communicate()

    assert in_a_fork(check) == 0


@linux
def test_killing_children_reaches_those_that_hide() -> None:
    """Grandchildren, those in a session of their own, and those that ignore signals."""

    def check() -> None:
        processes.become_subreaper()
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            if os.fork() == 0:
                os.setsid()
                os.write(write, str(os.getpid()).encode())
            sleep_for_ever()
        hidden = int(os.read(read, 20))
        os.close(write)
        processes.kill_children()
        assert os.read(read, 1) == b""
        assert processes.children() == []
        assert not exists(hidden)
        processes.kill_children()  # nothing to do

    with no_longer_than(30):
        assert in_a_fork(check) == 0


def test_forking_beside_a_thread_does_not_warn() -> None:
    """The tripwires look for threads that matter; Python 3.12 and later warn about any."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pid = processes.fork()
            if pid == 0:
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()
