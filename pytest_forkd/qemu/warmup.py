"""Makes the snapshot that workers' machines are cloned from: boots a guest and has it preload."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import stat
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pytest_forkd.backends.base import BackendError
from pytest_forkd.parent.plan import Plan
from pytest_forkd.qemu.accelerator import (
    Accelerator,
    find_accelerator,
    find_qemu,
    qemu_version,
)
from pytest_forkd.qemu.cpio import archive
from pytest_forkd.qemu.image import BOOTED_MARK, INITRD, ROOT_IMAGE, Progress, build_image
from pytest_forkd.qemu.kernel import Kernel, find_kernel
from pytest_forkd.qemu.store import Artifact, ArtifactStore, stamps
from pytest_forkd.qemu.vm import CHANNEL_PORT, Hardware, Snapshot, VirtualMachine

__all__ = [
    "DEFAULT_MEMORY",
    "Base",
    "available_memory",
    "check_memory",
    "find_base",
    "warm_snapshot",
]

#: Default memory of a guest, in MiB. Memory that it does not use costs nothing.
DEFAULT_MEMORY = 1024
#: Seconds for a guest to boot: emulation on a busy machine takes a hundred times as long as KVM.
_BOOT_TIMEOUT = 120.0
#: Seconds for it to preload modules; in emulation, imports are 20 times slower.
_PRELOAD_TIMEOUT = 900.0
_POLL = 0.02
_READY = '{"ready": true}'
#: Increase this when snapshots are made differently, so that older ones are not used.
_FORMAT = 1


@dataclass(frozen=True)
class Base:
    """What a snapshot is made of.

    :ivar image: the entry of the root image.
    :ivar version: QEMU's version.
    """

    hardware: Hardware
    image: Artifact
    kernel: Kernel
    accelerator: Accelerator
    version: str


def find_base(
    store: ArtifactStore,
    *,
    memory: int = DEFAULT_MEMORY,
    cpus: int = 1,
    kernel: str | None = None,
    include: Iterable[str] = (),
    network: bool = False,
    project: str | None = None,
    progress: Progress = lambda stage, part: None,
) -> Base:
    """Find QEMU, a kernel and an image of this environment, which is built if there is none.

    :param memory: the memory of a guest, in MiB.
    :param cpus: how many CPUs a guest has.
    :param kernel: the kernel's file, if one was asked for.
    :param include: paths and commands to add to the image.
    :param network: whether guests reach the network.
    :param project: the root of the tree that is sent before each run.
    :raises BackendError: if something is missing, or cannot be built.
    """
    qemu = find_qemu()
    found = find_kernel(store, kernel)
    image = build_image(store, found, include, project, progress)
    accelerator = find_accelerator(store, qemu, found, image.path / INITRD)
    hardware = Hardware(qemu, accelerator.name, memory, cpus, image.path / ROOT_IMAGE, network)
    return Base(hardware, image, found, accelerator, qemu_version(qemu))


def warm_snapshot(
    store: ArtifactStore, base: Base, plan: Plan, progress: Progress = lambda stage, part: None
) -> Artifact:
    """A snapshot whose parent has imported what ``plan`` says: a kept one, or a new one.

    A snapshot that has imported more is used, too, unless that includes the project's own modules.

    :raises BackendError: if it cannot be made.
    """
    plan = replace(plan, scan=None, cwd="/", path=[])  # the guest has no project yet
    key = _key(base, plan)
    wanted = set(plan.learnt)
    project = plan.project.partition("|")[0]
    kept = [e for e in store.entries() if e.kind == "snapshots" and e.name.startswith(f"{key}-")]
    for entry in kept:
        modules = entry.meta.get("modules", ())
        foreign = {name.partition(".")[0] for name in modules}.intersection(plan.exclude)
        if wanted.issubset(modules) and not foreign:
            entry.check()
            return entry
    name = f"{key}-{_hash([sorted(wanted), project])[:8]}"

    def build(folder: Path) -> dict[str, Any]:
        _warm_up(folder, base, plan, progress)
        snapshot = Snapshot.in_folder(folder)
        return {
            "modules": sorted(wanted),
            "preload": plan.preload,
            "project": project,
            "image": base.image.name,
            "accelerator": base.accelerator.name,
            "memory": base.hardware.memory,
            "stamps": stamps(Path(snapshot.memory), Path(snapshot.state)),
        }

    made = store.build("snapshots", name, build)
    for entry in kept:
        if entry.meta.get("project") == project and entry.name != name:
            with contextlib.suppress(OSError):
                store.remove(entry)  # the project needs more modules now
    return made


def _key(base: Base, plan: Plan) -> str:
    """A hash of what a snapshot depends on, without the modules that were learnt."""
    arguments = base.hardware.arguments("memory", share=False)
    state = [
        _FORMAT,
        # A rebuilt image is another one: a guest remembers which blocks its files are in.
        [base.image.name, base.image.meta.get("built")],
        base.kernel.identity(),
        base.version,
        arguments,
        _cpu() if base.accelerator.name == "kvm" else "",
        plan.preload,
        None if plan.rewriting is None else asdict(plan.rewriting),
    ]
    return _hash(state)[:16]


def _hash(state: Any) -> str:
    return hashlib.sha256(json.dumps(state).encode("utf-8", "surrogateescape")).hexdigest()


def _cpu() -> str:
    """The processor's model: with KVM, a snapshot cannot be restored on another one."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:
        return ""
    return "\n".join(re.findall(r"^(?:model name|flags|microcode)\s*:.*", text, re.MULTILINE))


def _warm_up(folder: Path, base: Base, plan: Plan, progress: Progress) -> None:
    """Boot a guest, have it preload, and save it to an empty directory of the store."""
    given = folder / "given.cpio"
    given.write_bytes(_given(plan))
    snapshot = Snapshot.in_folder(folder)
    snapshot.create(base.hardware.memory)
    progress("boot", 0.0)
    vm = VirtualMachine.boot(
        base.hardware, snapshot, base.kernel.image, [base.image.path / INITRD, given], ""
    )
    try:
        _wait_for(vm, BOOTED_MARK, _BOOT_TIMEOUT, "boot", "did not boot", progress)
        _wait_for(vm, _READY, _PRELOAD_TIMEOUT, "warm-up", "did not get ready", progress)
        progress("snapshot", 0.0)
        vm.save(snapshot)
    finally:
        vm.kill()
        vm.channel.close()
    given.unlink()
    progress("snapshot", 1.0)


def _wait_for(
    vm: VirtualMachine, text: str, timeout: float, stage: str, what: str, progress: Progress
) -> None:
    begin = time.monotonic()
    while text not in vm.console():
        passed = time.monotonic() - begin
        if vm.process.poll() is not None:
            vm.read_console()
            raise BackendError(
                f"the guest {what}: {vm.describe_end()}. Its console's last lines:\n"
                f"{vm.console(20)}"
            )
        if passed > timeout:
            raise BackendError(
                f"the guest {what} within {timeout:g} seconds. Its console's last lines:\n"
                f"{vm.console(20)}"
            )
        # The duration is unknown: fill half of the bar in the first ten seconds, then slow down.
        progress(stage, passed / (passed + 10.0))
        time.sleep(_POLL)
    progress(stage, 1.0)


def _given(plan: Plan) -> bytes:
    """An archive with the plan, which is unpacked into the guest's initramfs, too."""
    python = shlex.quote(sys.executable)
    start = (
        f"exec {python} -m pytest_forkd.parent --ready-json --rehearse "
        f"--port {CHANNEL_PORT} --plan /run/given/plan.json\n"
    )
    file = stat.S_IFREG | 0o644
    return archive(
        {
            "given": (stat.S_IFDIR | 0o755, b""),
            "given/start": (file, start.encode("utf-8", "surrogateescape")),
            "given/plan.json": (file, json.dumps(plan.to_json()).encode("ascii")),
        }
    )


def check_memory(workers: int, memory: int) -> None:
    """Refuse to start more guests than fit into memory.

    :raises BackendError: if not even the least memory that guests use is available.
    """
    least = min(memory, 128)
    available = available_memory()
    if available is not None and workers * least > available:
        raise BackendError(
            f"{workers} guests need at least {workers * least} MiB of memory, of which "
            f"{available} MiB are available.\nUse fewer workers (--forkd-workers)."
        )


def available_memory() -> int | None:
    """MiB of memory that can be used without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) // 1024
    except (OSError, ValueError):
        pass
    return None
