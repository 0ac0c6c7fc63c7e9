"""What the qemu backend takes: building, restoring, memory, messages, a run of 30 short tests.

``python benchmarks/qemu.py [--repeat N] [--cache DIR]`` with the interpreter of an environment in
which pytest-forkd is installed. What is built goes to DIR, else to a temporary directory; with DIR,
the next time finds it, and the first table has nothing to say.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pytest_forkd.channel.mux import (
    CONTROL,
    FILES,
    OPEN,
    Demultiplexer,
    control_frame,
    data_frames,
)
from pytest_forkd.parent.plan import Plan
from pytest_forkd.qemu.store import Artifact, ArtifactStore
from pytest_forkd.qemu.vm import Snapshot, VirtualMachine
from pytest_forkd.qemu.warmup import Base, find_base, warm_snapshot
from pytest_forkd.sync.difference import difference
from pytest_forkd.sync.pack import pack
from pytest_forkd.sync.scan import scan

COUNTS = (1, 2, 4, 8)
SUITE = """
import json, re, textwrap
import pytest

@pytest.mark.parametrize("n", range(10))
def test(n, tmp_path):
    text = json.dumps({"n": [n] * 100})
    (tmp_path / "file").write_text(text)
    assert len(re.findall(str(n), text)) >= 100
    assert textwrap.shorten(text, 50)
"""
#: A test that says many small things to the controller, each in a message of its own.
MESSAGES = 20_000
TALKATIVE = f"""
def test_talks(request):
    interactor, = (plugin for plugin in request.config.pluginmanager.get_plugins()
                   if type(plugin).__name__ == "Interactor")
    for _ in range({MESSAGES}):
        interactor.outbox.append(["deselected", 0])
        interactor.flush()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forkd-bench-") as folder:
        cache = options.cache or Path(folder) / "cache"
        base, snapshot = build(ArtifactStore(cache / "pytest-forkd"))
        restore(base, snapshot, options.repeat)
        serial(base, snapshot)
        sending(base, snapshot)
        talking(cache, Path(folder) / "talkative", options.repeat)
        run(cache, Path(folder) / "suite", options.repeat)


def build(store: ArtifactStore) -> tuple[Base, Artifact]:
    print("| building | seconds |\n| --- | ---: |")
    begin = time.perf_counter()
    seen: list[str] = []

    def progress(stage: str, part: float) -> None:
        if part == 1.0 and stage not in seen:
            seen.append(stage)
            print(f"| {stage}, done after | {time.perf_counter() - begin:.1f} |")

    base = find_base(store, progress=progress)
    entry = warm_snapshot(store, base, Plan(), progress)
    print(f"| all | {time.perf_counter() - begin:.1f} |\n")
    print(f"image {base.image.size / 1e6:.0f} MB, snapshot {entry.size / 1e6:.0f} MB,")
    print(f"accelerator {base.accelerator.name}, {base.version}, kernel {base.kernel.release}\n")
    return base, entry


def greet(vm: VirtualMachine) -> None:
    """Have a clone made its own, and wait until it says so: it is ready for work then."""
    message = {
        "time": time.time(),
        "seed": base64.b64encode(os.urandom(64)).decode(),
        "hostname": "clone",
    }
    vm.channel.sendall(data_frames(OPEN, b"") + control_frame({"restore": message}))


def wait(vm: VirtualMachine, name: str) -> None:
    vm.channel.settimeout(60)
    frames = Demultiplexer(CONTROL)
    while True:
        for _channel, payload in frames.feed(vm.channel.recv(65536)):
            if name in json.loads(payload):
                return


def end(vms: list[VirtualMachine]) -> None:
    for vm in vms:
        vm.kill()
        vm.channel.close()


def restore(base: Base, entry: Artifact, repeat: int) -> None:
    print("| clones | running, s | ready, s | memory of each (PSS), MiB |")
    print("| ---: | ---: | ---: | ---: |")
    for count in COUNTS:
        running, ready, memory = [], [], []
        for _ in range(repeat):
            begin = time.perf_counter()
            snapshot = Snapshot.in_folder(entry.path)
            vms = [VirtualMachine.restore(base.hardware, snapshot) for _ in range(count)]
            for vm in vms:
                vm.wait_restored()
            running.append(time.perf_counter() - begin)
            for vm in vms:
                greet(vm)
            for vm in vms:
                wait(vm, "restored")
            ready.append(time.perf_counter() - begin)
            memory += [proportional(vm.process.pid) for vm in vms]
            end(vms)
        medians = [statistics.median(values) for values in (running, ready, memory)]
        print(f"| {count} | {medians[0]:.2f} | {medians[1]:.2f} | {medians[2]:.0f} |")
    print()


def proportional(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise LookupError("Pss")


def serial(base: Base, entry: Artifact) -> None:
    begin = time.perf_counter()
    for _ in range(100):
        vm = VirtualMachine.restore(base.hardware, Snapshot.in_folder(entry.path))
        vm.wait_restored()
        greet(vm)
        wait(vm, "restored")
        end([vm])
    print(f"100 clones, one after the other: {time.perf_counter() - begin:.1f} s, none failed\n")


def sending(base: Base, entry: Artifact) -> None:
    """How fast files get into a guest, and are written there."""
    with tempfile.TemporaryDirectory(prefix="forkd-bench-") as folder:
        for number in range(32):
            Path(folder, f"{number}").write_bytes(os.urandom(1 << 20))
        data = list(pack(difference(scan(folder), {}), compress=False))
    vm = VirtualMachine.restore(base.hardware, Snapshot.in_folder(entry.path))
    vm.wait_restored()
    greet(vm)
    wait(vm, "restored")
    begin = time.perf_counter()
    vm.channel.sendall(control_frame({"sync": {"root": "/work"}}))
    for piece in data:
        vm.channel.sendall(data_frames(FILES, piece))
    vm.channel.sendall(control_frame({"sync_end": {}}))
    wait(vm, "synced")
    seconds = time.perf_counter() - begin
    end([vm])
    print(f"32 MiB of files sent, unpacked, checked and written: {32 / seconds:.1f} MiB/s\n")


def talking(cache: Path, suite: Path, repeat: int) -> None:
    """How many small messages get from a test through the guest's port to the session."""
    suite.mkdir()
    (suite / "test_talking.py").write_text(TALKATIVE)
    (suite / "conftest.py").write_text(
        "import time\n"
        "begin = [0.0]\n"
        "def pytest_runtest_logstart(): begin[0] = time.perf_counter()\n"
        "def pytest_runtest_logfinish(): print('took', time.perf_counter() - begin[0])\n"
    )
    rates = []
    for _ in range(repeat):
        told = pytest_in_guests(cache, suite, workers=1, passed=1)
        rates.append(MESSAGES / float(told.rpartition("took ")[2].split()[0]))
    print(
        f"small messages from a test to the controller: {statistics.median(rates):,.0f} a second\n"
    )


def pytest_in_guests(cache: Path, suite: Path, *options: str, workers: int, passed: int) -> str:
    """Run a suite in guests; what it has printed.

    :raises SystemExit: if not so many tests passed.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "xdist", "-p", "forkd"]
    command += ["--forkd-backend=qemu", f"--forkd-workers={workers}", *options]
    environ = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=suite, env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode or f"{passed} passed" not in done.stdout:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout


def run(cache: Path, suite: Path, repeat: int) -> None:
    suite.mkdir()
    for number in range(3):
        (suite / f"test_{number}.py").write_text(SUITE)
    (suite / "conftest.py").write_text(
        "import time\n"
        "last = [0.0]\n"
        "def pytest_runtest_logreport(report): last[0] = time.time()\n"
        "def pytest_unconfigure():\n    print('last report', last[0])\n"
    )
    print("| warm level | 30 tests, 4 workers: to the last report, s | to the end, s |")
    print("| --- | ---: | ---: |")
    for level in ("auto", "imports"):
        last, whole = [], []
        for _ in range(repeat):
            begin = time.time()
            told = pytest_in_guests(cache, suite, f"--forkd-warm={level}", workers=4, passed=30)
            whole.append(time.time() - begin)
            last.append(float(told.rpartition("last report ")[2].split()[0]) - begin)
        print(f"| {level} | {statistics.median(last):.1f} | {statistics.median(whole):.1f} |")


if __name__ == "__main__":
    main()
