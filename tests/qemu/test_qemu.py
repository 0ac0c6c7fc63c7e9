"""Workers in real virtual machines. Emulated they are slow, so each run checks several things."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_forkd.channel.mux import CONTROL, OPEN, Demultiplexer, control_frame, data_frames
from pytest_forkd.parent.plan import Plan
from pytest_forkd.qemu.image import ROOT_IMAGE
from pytest_forkd.qemu.store import Artifact, ArtifactStore
from pytest_forkd.qemu.vm import Snapshot, VirtualMachine, VmError
from pytest_forkd.qemu.warmup import Base, find_base, warm_snapshot
from tests.conftest import Runner
from tests.leftovers import wait_for_no_processes
from tests.process.test_parity import check_outcome, run_suite

pytestmark = [pytest.mark.qemu, pytest.mark.slow]

#: Seconds for QEMU to notice that whoever started it was killed.
GONE = 10


def properties(pytester: pytest.Pytester) -> list[dict[str, Any]]:
    """What the suite's tests have recorded, by way of ``conftest.py`` below."""
    lines = (pytester.path / "recorded").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


#: Writes, in the controller, what tests recorded; with what only the controller knows.
RECORDER = """
import json, time
from pathlib import Path

def pytest_runtest_logreport(report):
    if report.when == "call" and report.user_properties and hasattr(report, "node"):
        found = dict(report.user_properties)
        found |= {"worker": report.node.gateway.id, "arrived": time.time(), "id": report.nodeid}
        with open(Path(__file__).with_name("recorded"), "a") as file:
            print(json.dumps(found), file=file)
"""

IDENTITY = """
import os, random, socket, tempfile, time, uuid
import pytest

@pytest.mark.parametrize("n", range(8))
def test(n, record_property, tmp_path):
    record_property("drawn", [os.urandom(16).hex(), str(uuid.uuid4()), random.random(),
                              tempfile.mktemp(), os.path.basename(tempfile.mkdtemp())])
    record_property("host", socket.gethostname())
    record_property("kernel", os.uname().version)
    record_property("boot", open("/proc/sys/kernel/random/boot_id").read())
    record_property("cwd", os.getcwd())
    record_property("uptime", time.monotonic())
    time.sleep(0.05)
    record_property("now", time.time())
"""


@pytest.mark.parametrize("level", ["collection", "imports"])
def test_each_worker_is_a_machine_and_nobodys_twin(
    qemu: Runner, pytester: pytest.Pytester, level: str
) -> None:
    pytester.makeconftest(RECORDER)
    pytester.makepyfile(IDENTITY)
    result = qemu(f"--forkd-warm={level}", "--dist=load", workers=2)
    result.assert_outcomes(passed=8)
    # Where the snapshot for what this suite imports has yet to be built, the header does not wait.
    header = "forkd: 2 workers, qemu backend(, kept snapshot, (emulated|KVM))?$"
    result.stdout.re_match_lines([header])
    found = properties(pytester)
    workers = {each["worker"] for each in found}
    assert workers == {"gw0", "gw1"}
    by_worker = {each["worker"]: each["host"] for each in found}
    assert len(set(by_worker.values())) == 2
    boots = {(each["worker"], each["boot"]) for each in found}
    assert len(boots) == len({boot for _worker, boot in boots}) == 2, "one boot id for each"
    assert Path("/proc/sys/kernel/random/boot_id").read_text() not in dict(boots).values()
    assert {each["kernel"] for each in found} != {os.uname().version}
    assert {each["cwd"] for each in found} == {str(pytester.path)}
    drawn = [value for each in found for value in each["drawn"]]
    assert len(set(drawn)) == len(drawn), "two clones drew the same"
    for each in found:
        # It took a moment to arrive, and the machine may be busy; a clock that was not set would
        # be behind by the age of the snapshot.
        assert -0.1 < each["arrived"] - each["now"] < 2.0
    for worker in workers:
        # What arrived soonest says how far a clock is behind; 0.1 s for the way here.
        late = min(each["arrived"] - each["now"] for each in found if each["worker"] == worker)
        print(f"the clock of {worker} is {late:.4f} s late")
        assert late < 0.2, f"the clock of {worker} is {late:.3f} s late"


@pytest.mark.parametrize("level", ["collection", "imports"])
def test_machines_have_the_outcomes_of_a_plain_run(
    qemu: Runner, run: Runner, pytester: pytest.Pytester, level: str
) -> None:
    """The suite of the process backend's parity test."""
    plain = run_suite(pytester, run, runner="plain")
    (pytester.path / "records").unlink()
    check_outcome(run_suite(pytester, qemu, f"--forkd-warm={level}", workers=2), plain)


def test_what_is_printed_is_shown(qemu: Runner, run: Runner, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_a="""
            import sys, warnings, pytest

            @pytest.fixture(scope="module")
            def shared():
                yield 1
                print("torn down")

            def test_pass(shared): pass
            def test_fail(shared):
                print("to stdout"); print("to stderr", file=sys.stderr)
                assert shared == 2, "one is not two"
            @pytest.mark.skip(reason="why not")
            def test_skip(): pass
            @pytest.mark.xfail
            def test_xfail(): assert 0
            def test_warn(): warnings.warn("look out")
            @pytest.fixture
            def broken(): raise OSError("broken")
            def test_error(broken): pass
        """,
        test_b="def test_b(tmp_path): (tmp_path / 'x').write_text('y')",
    )
    pytester.mkpydir("pkg").joinpath("mod.py").write_text("X = 1")
    pytester.makepyfile(test_c="from pkg import mod\ndef test_c(): assert mod.X == 1")
    counts = run("-rA", "-p", "no:cacheprovider", runner="plain").parseoutcomes()
    result = qemu("-rA", "-p", "no:cacheprovider", workers=2)
    assert result.parseoutcomes() == counts
    result.stdout.fnmatch_lines_random(
        ["*AssertionError: one is not two", "to stdout", "to stderr", "*UserWarning: look out*"]
    )
    assert result.ret == 1


#: Two workers with the same port, one after the other's server is up; "HOST" is a port here.
SURROUNDINGS = """
import os, socket, time
import pytest

def reaches(host):
    try:
        with socket.create_connection((host, HOST), timeout=5) as sock:
            return sock.recv(5) == b"hello"
    except OSError:
        return False

@pytest.mark.parametrize("n", range(2))
def test_has_a_port_of_its_own(n, record_property):
    with socket.create_server(("127.0.0.1", 5432)):
        time.sleep(1)
        record_property("reached", [reaches(host) for host in ("127.0.0.1", "10.0.2.2")])
        record_property("variables", [name in os.environ for name in ("SECRET", "MY_NAME")])
        record_property("files", os.path.exists("PRIVATE"))
        disk = os.statvfs("/")
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        record_property("disk", disk.f_blocks * disk.f_frsize / memory)
"""


@pytest.mark.parametrize("network", ["none", "user"])
def test_what_a_guest_reaches_and_what_not(
    qemu: Runner,
    pytester: pytest.Pytester,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: str,
) -> None:
    """Ports, this machine's services, variables and files, and how much it can write."""
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setenv("MY_NAME", "1")
    private = tmp_path / "private"
    private.write_text("1")
    pytester.makeini("[pytest]\nforkd_env = MY_*")
    pytester.makeconftest(RECORDER)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        pytester.makepyfile(SURROUNDINGS.replace("HOST", port).replace("PRIVATE", str(private)))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as client:
                        client.sendall(b"hello")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        qemu(f"--forkd-network={network}", "--dist=load", workers=2).assert_outcomes(passed=2)
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    found = properties(pytester)
    assert {each["worker"] for each in found} == {"gw0", "gw1"}, "both had the port at once"
    for each in found:
        assert each["reached"] == [False, network == "user"]
        assert each["variables"] == [False, True]
        assert not each["files"]
        assert 0.6 < each["disk"] < 0.76


def test_the_working_tree_is_what_is_tested(qemu: Runner, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_a="def test_one(): pass", lib="ANSWER = 41", _version="V = 1")
    (pytester.path / ".gitignore").write_text("_version.py\n.pytest_cache\n")
    subprocess.run(["git", "init", "-q"], cwd=pytester.path, check=True)
    qemu("-q", workers=1).assert_outcomes(passed=1)
    (pytester.path / "test_a.py").unlink()
    (pytester.path / "lib.py").write_text("ANSWER = 42")
    pytester.makepyfile(
        test_b="import lib, _version\ndef test_two(): assert lib.ANSWER == 42\n"
        "def test_write(): open('written', 'w').write('in the guest')\n"
        "def test_fails(): assert 0"
    )
    result = qemu("-v", workers=1)
    result.assert_outcomes(passed=2, failed=1)
    qemu("--lf", workers=1).assert_outcomes(failed=1, deselected=0)
    assert "test_one" not in result.stdout.str()
    assert not (pytester.path / "written").exists()


DEATHS = """
import os, signal, time
import pytest

def test_panics():
    with open("/proc/sysrq-trigger", "w") as file:
        file.write("c")
    time.sleep(60)

def test_takes_all_memory():
    taken = []
    while True:
        taken.append(bytearray(64 << 20))

def test_kills_everything():
    os.kill(-1, signal.SIGKILL)
    time.sleep(60)

def test_spoils_its_machine():
    for path in ("/etc/passwd", "/usr/bin/busybox", os.__file__):
        os.unlink(path)
    time.clock_settime(time.CLOCK_REALTIME, 10**9 + 1)

@pytest.mark.parametrize("n", range(6))
def test_fine(n):
    assert time.time() > 1.6e9 and os.path.exists("/etc/passwd")

def test_switches_its_machine_off():
    with open("/proc/sysrq-trigger", "w") as file:
        file.write("o")
    time.sleep(60)
"""


def test_a_machine_that_dies_takes_one_test_with_it(
    qemu: Runner, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(DEATHS)
    result = qemu("-v", "--dist=load", "--max-worker-restart=8", workers=2)
    outcomes = result.parseoutcomes()
    text = result.stdout.str()
    assert outcomes["failed"] == 4, text
    assert outcomes["passed"] == 7, text
    assert "the guest switched itself off" in text
    assert "the guest's kernel panicked" in text
    assert "Kernel panic - not syncing: sysrq triggered crash" in text
    assert re.search(r"The guest's kernel: Out of memory: Killed process \d+ \(python", text)
    assert re.search(r"'gw\d' crashed while running '.*test_kills_everything'", text)


#: A guest's limit of processes is thousands: full sooner, it is as full.
GREEDY = """
import os, subprocess, time
import pytest

def test_fills_its_disk():
    with open("/filling", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * (4 << 20))

def test_forks_without_rest():
    with open("/dev/console", "w") as file:
        print("about to fork", file=file)
    with open("/proc/sys/kernel/threads-max", "w") as file:
        file.write("400")
    while True:
        try:
            os.fork()
        except OSError:
            pass

def test_forks_without_end():
    with open("/proc/sys/kernel/threads-max", "w") as file:
        file.write("400")
    open("/forking", "w").close()
    me = os.getpid()
    while True:
        try:
            os.fork()
        except OSError:
            if os.getpid() == me:
                raise
            time.sleep(1000)

@pytest.mark.parametrize("n", range(8))
def test_fine(n, record_property):
    record_property("spoiled", [p for p in ("/filling", "/forking") if os.path.exists(p)])
    if not os.path.exists("/filling"):
        with open("/some", "w") as file:
            file.write("x" * 100_000)
    if not os.path.exists("/forking"):
        assert subprocess.run(["/bin/true"]).returncode == 0
    time.sleep(0.5)
"""


@pytest.mark.parametrize(
    ("dist", "name", "reason", "end"),
    [
        (
            "load",
            "test_fills_its_disk",
            r"No space left on device|Out of memory: Killed",
            r"leaves its machine: the file system of / is full; replacing it|replacing crashed",
        ),
        (
            "no",
            "test_forks_without_end",
            r"Resource temporarily unavailable",
            r"leaves its machine: it has \d+ processes and threads, of 400 at most; replacing it",
        ),
        (
            "no",
            "test_forks_without_rest",
            r"crashed while running '.*test_forks_without_rest'",
            r"(?s)its guest was given up: it has \d+ processes and threads, of 400 at most"
            r".*The last lines of its console:\n.*about to fork",
        ),
    ],
)
def test_a_machine_that_takes_all_it_can_get_is_replaced(
    qemu: Runner, pytester: pytest.Pytester, dist: str, name: str, reason: str, end: str
) -> None:
    """Its test fails with the reason; those after it, and the other machine, miss nothing."""
    pytester.makeconftest(RECORDER)
    pytester.makepyfile(GREEDY)
    result = qemu("-v", f"--dist={dist}", "-k", f"{name} or fine", workers=2)
    text = result.stdout.str()
    result.assert_outcomes(failed=1, passed=8, deselected=2)
    assert re.search(rf"FAILED \S+::{name}", text), text
    assert re.search(reason, text), text
    assert re.search(end, text), text
    found = properties(pytester)
    assert len(found) == 8
    assert not any(each["spoiled"] for each in found), found


#: Two tests of three seconds, at the same time: one changes its machine, one looks on.
CHANGES = """
import os, socket, time

def test_changes_its_machine(record_property):
    time.clock_settime(time.CLOCK_REALTIME, 10**9)
    socket.sethostname("changed")
    record_property("now", time.time())
    record_property("host", socket.gethostname())
    time.sleep(3)

def test_looks_on(record_property):
    name = socket.gethostname()
    begin, boot = time.time(), open("/proc/sys/kernel/random/boot_id").read()
    mono = time.monotonic()
    while time.monotonic() - mono < 3:
        assert abs((time.time() - begin) - (time.monotonic() - mono)) < 0.1
        assert socket.gethostname() == name
        time.sleep(0.05)
    assert open("/proc/sys/kernel/random/boot_id").read() == boot
    record_property("now", time.time())
    record_property("host", name)
"""


def test_a_changed_clock_and_name_are_noticed_by_no_other(
    qemu: Runner, pytester: pytest.Pytester
) -> None:
    pytester.makeconftest(RECORDER)
    pytester.makepyfile(CHANGES)
    here = os.uname().nodename
    begin, wall = time.monotonic(), time.time()
    result = qemu("--dist=load", workers=2)
    result.assert_outcomes(passed=2)
    found = {each["id"].partition("::")[2]: each for each in properties(pytester)}
    changed, other = found["test_changes_its_machine"], found["test_looks_on"]
    assert changed["worker"] != other["worker"]
    assert changed["host"] == "changed"
    assert abs(changed["now"] - 10**9) < 1
    # Each arrives as its test ends, and both take three seconds: they ran at the same time.
    assert abs(changed["arrived"] - other["arrived"]) < 3
    assert re.fullmatch(r"forkd-[0-9a-f]{8}", other["host"])
    assert -0.1 < other["arrived"] - other["now"] < 2.0
    assert os.uname().nodename == here
    assert abs((time.time() - wall) - (time.monotonic() - begin)) < 1.0, "this machine's clock"


def test_a_qemu_that_is_killed_is_replaced(qemu: Runner, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import os, signal
        from pathlib import Path

        killed = []

        def pytest_runtest_logreport(report):
            # In the controller, when a worker has run its first test: end all its machines.
            if hasattr(report, "node") and report.when == "call" and not killed:
                for task in Path("/proc/self/task").iterdir():
                    for pid in (task / "children").read_text().split():
                        if "qemu" in Path(f"/proc/{pid}/comm").read_text():
                            killed.append(pid)
                            os.kill(int(pid), signal.SIGKILL)
        """
    )
    pytester.makepyfile(
        """
        import time, pytest
        @pytest.mark.parametrize("n", range(6))
        def test(n):
            time.sleep(0.5)
        """
    )
    result = qemu("--dist=load", workers=1)
    text = result.stdout.str()
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] == 1, text
    assert outcomes["passed"] == 5, text
    assert "QEMU was ended by SIGKILL" in text


SLEEPER = """
import time, pytest
@pytest.mark.parametrize("n", range(2))
def test_sleeps(n):
    time.sleep(100)
"""

#: Counts, in the controller, the tests that have been started.
COUNTER = """
def pytest_runtest_logstart(nodeid):
    with open("started", "a") as file:
        file.write(".")
"""


@pytest.fixture
def sleeping(
    warm: tuple[Path, Base, Artifact], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[str]]:
    """A run whose workers are in the middle of their tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(warm[0]))
    pytester.makepyfile(SLEEPER)
    pytester.makeconftest(COUNTER)
    started = pytester.path / "started"
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "forkd"]
    process = subprocess.Popen(
        [*command, "--dist=load", "--forkd-workers=2", "--forkd-backend=qemu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=pytester.path,
    )
    assert process.stdout is not None
    try:
        deadline = time.monotonic() + 90
        while not started.exists() or started.stat().st_size < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_machine_outlives_its_run(
    sleeping: subprocess.Popen[str], pytester: pytest.Pytester, signum: signal.Signals
) -> None:
    assert len(wait_for_no_processes(str(pytester.path), 0)) >= 3, "the run and its machines"
    sleeping.send_signal(signum)
    begin = time.monotonic()
    assert sleeping.stdout is not None
    text = sleeping.stdout.read()
    sleeping.wait(30)
    assert time.monotonic() - begin < 20
    assert wait_for_no_processes(str(pytester.path), GONE) == []
    if signum == signal.SIGINT:
        assert sleeping.returncode == pytest.ExitCode.INTERRUPTED, text


def test_building_that_is_interrupted_leaves_nothing(
    warm: tuple[Path, Base, Artifact], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = pytester.path / "cache"
    (cache / "pytest-forkd" / "images").mkdir(parents=True, mode=0o700)
    image = warm[1].image.path
    (cache / "pytest-forkd" / "images" / image.name).symlink_to(image)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    pytester.makepyfile("def test(): pass")
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "forkd"]
    run = subprocess.Popen(
        [*command, "--forkd-workers=1", "--forkd-backend=qemu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=pytester.path,
    )
    assert run.stdout is not None
    for line in run.stdout:
        if "booting a guest" in line:
            break
    run.send_signal(signal.SIGINT)
    begin = time.monotonic()
    text = run.stdout.read()
    assert run.wait(30) == pytest.ExitCode.INTERRUPTED, text
    assert time.monotonic() - begin < 15
    run.stdout.close()
    assert wait_for_no_processes(str(pytester.path), GONE) == []
    left = os.listdir(cache / "pytest-forkd" / "snapshots")
    assert [name for name in left if not name.endswith(".lock")] == []


def test_two_runs_share_a_snapshot_and_need_no_privileges(
    warm: tuple[Path, Base, Artifact], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(warm[0]))
    pytester.makepyfile("def test_a(): pass\ndef test_b(): pass")
    # Root without any capability is nobody in particular.
    command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.getuid() == 0 else []
    command += [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "forkd", "-p"]
    command += ["no:cacheprovider", "--forkd-workers=1", "--forkd-backend=qemu"]
    names = sorted(os.listdir(warm[0] / "pytest-forkd" / "snapshots"))
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=pytester.path)
        for _ in range(2)
    ]
    for each in runs:
        text, _ = each.communicate(timeout=90)
        assert each.returncode == 0, text
        assert "2 passed" in text
    assert sorted(os.listdir(warm[0] / "pytest-forkd" / "snapshots")) == names


# the machines themselves --------------------------------------------------------------------------


def greet(vm: VirtualMachine) -> dict[str, Any]:
    """Have a clone made its own; returns what its parent says."""
    restore = {
        "time": time.time(),
        "seed": base64.b64encode(os.urandom(64)).decode(),
        "hostname": "clone",
    }
    vm.channel.settimeout(30)
    vm.channel.sendall(data_frames(OPEN, b"") + control_frame({"restore": restore}))
    frames = Demultiplexer(CONTROL)
    found: dict[str, Any] = {}
    while "restored" not in found:
        for _channel, payload in frames.feed(vm.channel.recv(65536)):
            found |= json.loads(payload)
    return found


def end(vm: VirtualMachine) -> None:
    vm.kill()
    vm.channel.close()


def test_clones_come_one_after_the_other(warm: tuple[Path, Base, Artifact]) -> None:
    _cache, base, snapshot = warm
    for _ in range(30):
        vm = VirtualMachine.restore(base.hardware, Snapshot.in_folder(snapshot.path))
        try:
            vm.wait_restored()
            found = greet(vm)
            assert found["restored"] == {"failed": []}
            assert found["hello"]["state"] == "rest"
        finally:
            end(vm)
        assert vm.process.returncode == -signal.SIGKILL


def test_a_clone_can_be_saved_and_cloned_and_changes_nothing(
    warm: tuple[Path, Base, Artifact],
) -> None:
    _cache, base, entry = warm
    snapshot = Snapshot.in_folder(entry.path)
    before = Path(snapshot.memory).stat().st_mtime_ns, Path(snapshot.state).read_bytes()
    branch = Snapshot.in_memory(base.hardware.memory)
    try:
        snapshot.copy_to(branch)
        vm = VirtualMachine.restore(base.hardware, snapshot, own=branch)
        try:
            vm.wait_restored()
            greet(vm)
            vm.save(branch)
        finally:
            end(vm)
        for _ in range(2):
            clone = VirtualMachine.restore(base.hardware, branch)
            try:
                clone.wait_restored()
                assert greet(clone)["hello"]["state"] == "rest"
            finally:
                end(clone)
    finally:
        branch.close()
    assert before == (Path(snapshot.memory).stat().st_mtime_ns, Path(snapshot.state).read_bytes())


def test_a_damaged_snapshot_is_told_with_what_to_do(
    warm: tuple[Path, Base, Artifact],
    run_plan: Plan,
    run: Runner,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = ArtifactStore(pytester.path / "cache" / "pytest-forkd")
    image = warm[1].image
    (store.directory / "images").mkdir(parents=True, mode=0o700)
    (store.directory / "images" / image.name).symlink_to(image.path)

    def damaged(folder: Path, base: Base, *_args: object) -> None:
        snapshot = Snapshot.in_folder(folder)
        snapshot.create(base.hardware.memory)
        Path(snapshot.state).write_bytes(b"no state of any machine")

    with monkeypatch.context() as patch:
        patch.setattr("pytest_forkd.qemu.warmup._warm_up", damaged)
        entry = warm_snapshot(store, find_base(store), run_plan)
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "cache"))
    pytester.makepyfile("def test(): pass")
    memory = entry.path / "memory"
    built = memory.stat()

    def other_content() -> None:
        with open(memory, "r+b") as file:
            file.write(b"x" * 4096)
        os.utime(memory, ns=(built.st_atime_ns, built.st_mtime_ns + 10**9))  # whole seconds count

    def as_it_was() -> None:
        os.utime(memory, ns=(built.st_atime_ns, built.st_mtime_ns))
        (entry.path / "state").unlink()

    steps: list[tuple[Callable[[], object], str]] = [
        (lambda: None, "Not a migration stream"),
        (other_content, f"{memory} has been changed since it was built"),
        (lambda: os.truncate(memory, 0), f"{memory} has been changed since it was built"),
        (lambda: os.truncate(memory, built.st_size), "has been changed since"),
        (as_it_was, f"{entry.path / 'state'} cannot be read: No such file"),
    ]
    for damage, message in steps:
        damage()
        result = run("--forkd-backend=qemu", workers=1)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        text = result.stdout.str() + result.stderr.str()
        assert message in text
        assert f"built anew: pytest-forkd image rm {entry.name}" in text


@pytest.mark.parametrize("what", ["changed", "touched", "removed"])
def test_an_image_that_is_not_what_was_built_is_refused(
    warm: tuple[Path, Base, Artifact],
    run: Runner,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    built = warm[1].image
    cache = pytester.path / "cache"
    image = cache / "pytest-forkd" / "images" / built.name
    image.mkdir(parents=True, mode=0o700)
    for name in os.listdir(built.path):
        (image / name).symlink_to(built.path / name)
    root = image / ROOT_IMAGE
    root.unlink()
    if what != "removed":
        with open(root, "wb") as file:
            file.truncate((built.path / ROOT_IMAGE).stat().st_size - (what == "changed"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    pytester.makepyfile("def test(): pass")
    result = run("--forkd-backend=qemu", workers=1)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stdout.str() + result.stderr.str()
    said = "cannot be read: No such file" if what == "removed" else "has been changed since"
    assert f"{root} {said}" in text
    assert f"To have the image built anew: pytest-forkd image rm {built.name}" in text
    assert "Traceback" not in text


def test_a_snapshot_that_is_none_is_told(warm: tuple[Path, Base, Artifact], tmp_path: Path) -> None:
    _cache, base, entry = warm
    broken = Snapshot(Snapshot.in_folder(entry.path).memory, str(tmp_path / "state"))
    (tmp_path / "state").write_bytes(b"no state of any machine")
    vm = VirtualMachine.restore(base.hardware, broken)
    try:
        with pytest.raises(VmError, match=r"a virtual machine could not be restored: .+"):
            vm.wait_restored(10)
    finally:
        end(vm)


def test_a_snapshot_that_lacks_something_is_refused(
    warm: tuple[Path, Base, Artifact], tmp_path: Path
) -> None:
    """QEMU would make good for missing memory, with zeros."""
    _cache, base, entry = warm
    whole = Snapshot.in_folder(entry.path)
    (tmp_path / "memory").touch()
    for broken, message in (
        (Snapshot(str(tmp_path / "memory"), whole.state), "damaged: its memory has 0 MiB"),
        (Snapshot(whole.memory, str(tmp_path / "state")), "cannot be read: .*No such file"),
    ):
        with pytest.raises(VmError, match=message):
            VirtualMachine.restore(base.hardware, broken)


def test_what_is_kept_is_its_owners_alone(warm: tuple[Path, Base, Artifact]) -> None:
    cache, _base, snapshot = warm
    for path in (cache / "pytest-forkd", snapshot.path, snapshot.path / "memory"):
        assert path.stat().st_mode & 0o077 == 0


# bad input: no machine is started -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--forkd-memory=10", "--forkd-memory: '10' is no number of MiB that a guest can have."),
        ("--forkd-memory=much", "--forkd-memory: 'much' is no number of MiB"),
        ("--forkd-cpus=0", "--forkd-cpus: '0' is no number of processors"),
        ("--forkd-network=all", "--forkd-network: 'all' must be one of none, user."),
        (
            "--forkd-kernel=/no/such/kernel",
            "--forkd-kernel: /no/such/kernel cannot be used: No such",
        ),
    ],
)
def test_options_that_make_no_sense(
    qemu: Runner, pytester: pytest.Pytester, option: str, message: str
) -> None:
    pytester.makepyfile("def test(): pass")
    result = qemu(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr.str() + result.stdout.str()
    assert "Traceback" not in result.stderr.str() + result.stdout.str()


def test_without_qemu_it_is_said_what_to_install(
    qemu: Runner, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile("def test(): pass")
    monkeypatch.setenv("PATH", str(pytester.path))
    result = qemu()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "apt-get install qemu-system-x86" in result.stderr.str() + result.stdout.str()


def test_more_guests_than_there_is_memory_for(qemu: Runner, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test(): pass")
    match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert match is not None
    workers = int(match[1]) // 1024 // 128 * 2
    if workers > 500:
        pytest.skip("each worker takes descriptors; there are not enough for so many")
    result = qemu(workers=workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stderr.str() + result.stdout.str()
    assert f"{workers} guests need at least {workers * 128} MiB of memory" in text
