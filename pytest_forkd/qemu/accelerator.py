"""Finds QEMU, and tests whether KVM works here.

On hosts that are virtual machines themselves, ``/dev/kvm`` may exist and may be opened, and a
guest's kernel may still hang or fail while it boots.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from pytest_forkd.backends.base import BackendError
from pytest_forkd.qemu.image import PROBE_MARK
from pytest_forkd.qemu.kernel import Kernel
from pytest_forkd.qemu.store import ArtifactStore
from pytest_forkd.qemu.vm import Hardware, Snapshot, VirtualMachine, VmError

__all__ = ["Accelerator", "find_accelerator", "find_qemu", "is_new_enough", "qemu_version"]

PROGRAM = "qemu-system-x86_64"
_KVM = "/dev/kvm"
#: The QEMU of Debian 12.
_OLDEST = (7, 2)
#: Seconds for a kernel to reach its first program with KVM; normally it takes less than one.
_PROBE_TIMEOUT = 6.0
_PROBE_MEMORY = 128
#: Seconds. The version command is quick, but the program may be on a slow disk.
_VERSION_TIMEOUT = 20.0


@dataclass(frozen=True)
class Accelerator:
    """How guests are run.

    :ivar name: ``kvm``, or ``tcg``: emulation.
    :ivar why_not: why it is not KVM, and what to do; empty if it is.
    """

    name: str
    why_not: str = ""


def find_qemu() -> str:
    """The path of QEMU.

    :raises BackendError: if it is not installed.
    """
    found = shutil.which(PROGRAM)
    if found is None:
        raise BackendError(
            f"the qemu backend needs QEMU ({PROGRAM}), which is not installed.\n"
            "Debian, Ubuntu: apt-get install qemu-system-x86; Fedora: dnf install qemu-system-x86; "
            "macOS: brew install qemu."
        )
    return found


def qemu_version(program: str) -> str:
    """QEMU's version, including its build.

    :raises BackendError: if it does not run.
    """
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BackendError(f"{program} does not run: {exc}") from exc
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise BackendError(f"{program} does not run: {done.stderr.strip() or 'it says nothing'}")
    return lines[0]


def is_new_enough(version: str) -> bool:
    """Whether a QEMU is one that the backend was developed with, or a later one.

    :param version: what :func:`qemu_version` says; one that names no number passes.
    """
    found = re.search(r"version (\d+)\.(\d+)", version)
    return found is None or (int(found[1]), int(found[2])) >= _OLDEST


def find_accelerator(
    store: ArtifactStore, qemu: str, kernel: Kernel, initrd: Path, *, anew: bool = False
) -> Accelerator:
    """KVM if it works, else emulation.

    The result is remembered until the machine is rebooted, or QEMU or the kernel changes.

    :param initrd: the image's initramfs, which ends a probe.
    :param anew: probe again, whatever was found before.
    """
    if not os.path.exists(_KVM):
        return Accelerator(
            "tcg",
            f"there is no {_KVM}. On a machine of your own, switch virtualization on in its "
            "firmware; on a virtual one, ask for nested virtualization",
        )
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return Accelerator(
            "tcg",
            f"{_KVM} may not be opened. Add yourself to the group that owns it "
            "(sudo usermod -aG kvm $USER) and log in again",
        )
    key = _key(qemu, kernel)
    path = store.directory / "kvm.json"
    if not anew:
        try:
            kept = json.loads(path.read_text("utf-8"))
            if kept["key"] == key and isinstance(kept["problem"], str):
                return _accelerator(kept["problem"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
    problem = _probe(qemu, kernel, initrd)
    try:
        store.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps({"key": key, "problem": problem}), "utf-8")
        beside.rename(path)
    except OSError:
        pass  # the next run will probe again
    return _accelerator(problem)


def _accelerator(problem: str) -> Accelerator:
    if not problem:
        return Accelerator("kvm")
    return Accelerator(
        "tcg",
        f"{_KVM} is there, but a guest does not boot with it ({problem}). This machine is probably "
        "a virtual one; use one with working nested virtualization, or a real one",
    )


def _probe(qemu: str, kernel: Kernel, initrd: Path) -> str:
    """Boot a kernel with KVM, up to its first program.

    :returns: what went wrong; empty if nothing did.
    """
    hardware = Hardware(qemu, "kvm", _PROBE_MEMORY, 1, root=Path("/dev/null"))
    memory = Snapshot.in_memory(_PROBE_MEMORY)
    try:
        machine = VirtualMachine.boot(hardware, memory, kernel.image, [initrd], "forkd.probe")
    except VmError as exc:
        return str(exc)
    finally:
        memory.close()
    try:
        deadline = time.monotonic() + _PROBE_TIMEOUT
        while time.monotonic() < deadline:
            if PROBE_MARK in machine.console():
                return ""
            if machine.process.poll() is not None:
                return "" if PROBE_MARK in machine.console() else machine.describe_end()
            time.sleep(0.01)
        return f"it has not booted within {_PROBE_TIMEOUT:g} seconds"
    finally:
        machine.kill()
        machine.channel.close()


def _key(qemu: str, kernel: Kernel) -> str:
    """What the result of a probe depends on."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        boot = re.sub(r"\W", "", str(os.uname()))
    info = os.stat(qemu)
    state = [boot, qemu, info.st_size, info.st_mtime_ns, kernel.identity()]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:20]
