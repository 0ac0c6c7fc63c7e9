"""The checks of ``pytest-forkd doctor --backend qemu``."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pytest_forkd.backends.base import BackendError
from pytest_forkd.console.checks import Check
from pytest_forkd.console.tables import duration
from pytest_forkd.qemu.accelerator import find_accelerator, find_qemu, is_new_enough, qemu_version
from pytest_forkd.qemu.image import initramfs, mke2fs
from pytest_forkd.qemu.kernel import Kernel, busybox, find_kernel
from pytest_forkd.qemu.store import ArtifactStore
from pytest_forkd.qemu.warmup import DEFAULT_MEMORY, available_memory

__all__ = ["examine"]

#: MiB that the image and snapshot of an average environment take.
_DISK = 1500
#: MiB that a guest needs at least.
_GUEST = 128


def examine(kernel: str | None = None, workers: int | None = None) -> Iterator[Check]:
    """Check everything that runs with ``--forkd-backend=qemu`` need.

    :param kernel: the kernel to use, if one was given.
    :param workers: how many workers a run will have.
    """
    store = ArtifactStore.find()
    qemu = None
    try:
        qemu = find_qemu()
        version = f"{qemu_version(qemu)} ({qemu})"
        if is_new_enough(version):
            yield Check("QEMU", "ok", version)
        else:
            yield Check("QEMU", "problem", f"{version} is too old", "Install QEMU 7.2 or later.")
    except BackendError as exc:
        yield _problem("QEMU", exc)
    found, shell = None, None
    try:
        found = find_kernel(store, kernel)
        yield Check("kernel", "ok", f"{found.release} ({found.image})")
    except BackendError as exc:
        yield _problem("kernel", exc)
    try:
        shell = busybox(store)
        yield Check("busybox", "ok", str(shell))
    except BackendError as exc:
        yield _problem("busybox", exc)
    try:
        yield Check("mke2fs", "ok", mke2fs())
    except BackendError as exc:
        yield _problem("mke2fs", exc)
    if qemu is None or found is None or shell is None:
        yield Check("KVM", "skipped", "it can only be tried with QEMU, a kernel and busybox")
    else:
        yield _kvm(store, qemu, found, shell)
    yield _memory(workers)
    yield from _kept(store)


def _problem(name: str, exc: BackendError) -> Check:
    first, _, rest = str(exc).partition("\n")
    return Check(name, "problem", first, rest)


def _kvm(store: ArtifactStore, qemu: str, kernel: Kernel, shell: Path) -> Check:
    with tempfile.TemporaryDirectory(prefix="pytest-forkd-") as folder:
        initrd = Path(folder) / "initrd"
        try:
            initrd.write_bytes(initramfs(kernel, shell))
            found = find_accelerator(store, qemu, kernel, initrd, anew=True)
        except BackendError as exc:
            return _problem("KVM", exc)
    if found.name == "kvm":
        return Check("KVM", "ok", "it works: a kernel boots with it")
    what, _, advice = found.why_not.partition(". ")
    return Check(
        "KVM",
        "warning",
        f"{what}; guests are emulated, so Python runs 10 times slower in them, imports 20 times",
        advice,
    )


def _memory(workers: int | None) -> Check:
    available = available_memory()
    if available is None:
        return Check("memory", "skipped", "this system does not say how much there is")
    count = workers or 4
    text = f"{available} MiB are available; {count} guests take {count * _GUEST} MiB at least"
    if available < count * _GUEST:
        return Check("memory", "problem", text, "Use fewer workers (--forkd-workers).")
    if available < count * DEFAULT_MEMORY:
        return Check(
            "memory",
            "warning",
            f"{text}, {count * DEFAULT_MEMORY} MiB at most",
            "Give guests less (--forkd-memory), or use fewer, if their tests need much memory.",
        )
    return Check("memory", "ok", text)


def _kept(store: ArtifactStore) -> Iterator[Check]:
    """Check the disk, and list images and snapshots."""
    folder = store.directory
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free >> 20
    if not os.access(folder, os.W_OK):
        yield Check("disk", "problem", f"{folder} cannot be written", "Set XDG_CACHE_HOME.")
    elif free < _DISK:
        advice = "Make room ('pytest-forkd image prune'), or set XDG_CACHE_HOME to a larger disk."
        yield Check("disk", "warning", f"{free} MiB are free in {folder}", advice)
    else:
        yield Check("disk", "ok", f"{free} MiB are free in {folder}")
    entries = store.entries()
    for kind in ("images", "snapshots"):
        found = [entry for entry in entries if entry.kind == kind]
        size = 0
        for entry in found:
            with contextlib.suppress(OSError):
                size += entry.size
        if found:
            used = duration(time.time() - max(entry.used for entry in found))
            text = f"{len(found)} kept, {size >> 20} MiB; last used {used} ago"
        else:
            text = "none is kept; the first run builds one"
        yield Check(kind, "ok", text)
