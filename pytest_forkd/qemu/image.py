"""The root image and the initramfs of guests, made from the environment that pytest runs in."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pytest_forkd import __version__
from pytest_forkd.backends.base import BackendError
from pytest_forkd.parent.fingerprint import installed
from pytest_forkd.qemu.cpio import archive
from pytest_forkd.qemu.kernel import MODULES, Kernel, busybox, module_files
from pytest_forkd.qemu.store import Artifact, ArtifactStore, stamps
from pytest_forkd.qemu.tree import Contents, contents, plant

__all__ = [
    "BOOTED_MARK",
    "INITRD",
    "PROBE_MARK",
    "ROOT_IMAGE",
    "Progress",
    "build_image",
    "image_fingerprint",
    "initramfs",
    "mke2fs",
]

ROOT_IMAGE = "root.ext4"
INITRD = "initrd.cpio"
#: Console output of a guest that was booted only to probe whether booting works.
PROBE_MARK = "pytest-forkd: the kernel runs"
#: Console output of a guest once its root file system is mounted.
BOOTED_MARK = "pytest-forkd: the guest has booted"
#: Increase this when images are made differently, so that older ones are not used.
_FORMAT = 3
_MKFS_TIMEOUT = 300.0
#: How many older images of an environment are kept.
_KEPT_IMAGES = 1
#: Called with a stage's name and the fraction of it that is done, from 0 to 1.
Progress = Callable[[str, float], None]

_INIT = """#!/bin/busybox sh
# The first program of a guest: mounts the root image, with a file system in memory over it.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for word in $($b cat /proc/cmdline); do
    if [ "$word" = forkd.probe ]; then
        echo "{mark}" >/dev/console
        $b poweroff -f
    fi
done
for module in {modules}; do $b insmod /modules/$module || echo "cannot load $module"; done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 500 ]; do tries=$((tries+1)); $b usleep 10000; done
$b mount -t ext4 -o ro,noatime /dev/vda /lower || $b poweroff -f
$b mount -t tmpfs -o size=75%,mode=0755 tmpfs /upper
$b mkdir /upper/up /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/up,workdir=/upper/work overlay /merged
for name in proc sys dev; do $b mount -o move /$name /merged/$name; done
$b mkdir -p /merged/dev/shm /merged/dev/pts
$b mount -t devpts -o ptmxmode=0666 devpts /merged/dev/pts
$b mount -t tmpfs -o mode=1777 tmpfs /merged/dev/shm
# /tmp has none of its own: environments and projects may be in it.
$b mount -t tmpfs -o mode=0755 tmpfs /merged/run
if $b ifconfig eth0 10.0.2.15 netmask 255.255.255.0 2>/dev/null; then
    $b route add default gw 10.0.2.2
fi
for name in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    $b ln -sf ${{name#*:}} /merged/dev/${{name%%:*}}
done
[ -e /given ] && $b cp -r /given /merged/run/given
$b cp /second /merged/run/init
exec $b switch_root /merged /run/init
"""
_SECOND = """#!/usr/bin/busybox sh
# Process 1 of a guest: starts what the guest is for, reaps what that leaves, ends with it.
b=/usr/bin/busybox
export PATH=/usr/local/bin:/usr/bin:/bin HOME=/root LANG=C.UTF-8 TERM=linux
$b ip link set lo up 2>/dev/null
$b ifconfig lo 127.0.0.1 2>/dev/null
cd /root
echo "{booted}" >/dev/console
[ -e /run/given/start ] && $b sh /run/given/start </dev/null >/dev/console 2>&1 &
wait $!
echo "pytest-forkd: the guest's program ended with status $?" >/dev/console
$b poweroff -f
"""


def image_fingerprint(kernel: Kernel, include: Iterable[str], project: str | None) -> str:
    """A hash of what an image depends on, as 20 hexadecimal digits."""
    state = [
        _FORMAT,
        __version__,
        kernel.identity(),
        sorted(include),
        project,
        [sys.version, sys.executable, sys.prefix, sys.base_prefix],
        installed(),
        _own_sources(),
    ]
    text = json.dumps(state, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def _own_sources() -> list[Any]:
    """Hashes of this package's files: in an editable install they change, but not the version.

    Contents count, not times: a checkout with the same files as an installed copy is the same.
    """
    package = Path(__file__).parent.parent
    return [
        [str(path.relative_to(package)), zlib.crc32(path.read_bytes())]
        for path in sorted(package.rglob("*.py"))
    ]


def build_image(
    store: ArtifactStore,
    kernel: Kernel,
    include: Iterable[str] = (),
    project: str | None = None,
    progress: Progress = lambda stage, part: None,
) -> Artifact:
    """The image for this interpreter and environment: a kept one, or a new one.

    :param include: paths and names of commands to add.
    :param project: the root of the tree that is sent before each run; it is left out.
    :raises BackendError: if it cannot be built.
    """
    include = list(include)
    what = contents(include, project)

    def build(folder: Path) -> dict[str, Any]:
        return _build(folder, store, kernel, what, progress)

    name = image_fingerprint(kernel, include, project)
    found = store.get("images", name)
    if found is not None:
        found.check()
        return found
    entry = store.build("images", name, build)
    # Remove older images of this environment, but keep the last: it may be in use or needed again.
    others = [e for e in store.entries() if e.kind == "images" and e.name != entry.name]
    for old in [e for e in others if e.meta.get("prefix") == sys.prefix][_KEPT_IMAGES:]:
        with contextlib.suppress(OSError):
            store.remove(old)
    return entry


def _build(
    folder: Path, store: ArtifactStore, kernel: Kernel, what: Contents, progress: Progress
) -> dict[str, Any]:
    mkfs = mke2fs()
    shell = busybox(store)
    (folder / INITRD).write_bytes(initramfs(kernel, shell))
    # In the store, since this is large, and the temporary directory may be in memory.
    with tempfile.TemporaryDirectory(prefix="tree-", dir=folder) as tree:
        os.chmod(tree, 0o755)  # noqa: S103 - the root of the guest
        count = plant(Path(tree), what, shell, lambda part: progress("tree", part))
        progress("image", 0.0)
        _make_ext4(mkfs, Path(tree), folder / ROOT_IMAGE, count)
    os.chmod(folder / ROOT_IMAGE, 0o400)
    progress("image", 1.0)
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "prefix": sys.prefix,
        "kernel": kernel.release,
        "files": count,
        "stamps": stamps(folder / INITRD, folder / ROOT_IMAGE),
    }


def initramfs(kernel: Kernel, shell: Path) -> bytes:
    """The initramfs, an archive that the kernel unpacks as its first file system.

    :raises BackendError: if the kernel lacks a module.
    """
    modules = module_files(kernel, MODULES)
    names = ("bin", "dev", "lower", "merged", "modules", "proc", "sys", "upper")
    files: dict[str, tuple[int, bytes]] = dict.fromkeys(names, (stat.S_IFDIR | 0o755, b""))
    files["bin/busybox"] = (stat.S_IFREG | 0o755, shell.read_bytes())
    for name, content in modules:
        files[f"modules/{name}"] = (stat.S_IFREG | 0o644, content)
    text = _INIT.format(mark=PROBE_MARK, modules=" ".join(name for name, _ in modules))
    files["init"] = (stat.S_IFREG | 0o755, text.encode())
    files["second"] = (stat.S_IFREG | 0o755, _SECOND.format(booted=BOOTED_MARK).encode())
    return archive(files)


def mke2fs() -> str:
    """The path of the program that makes root images.

    :raises BackendError: if it is not installed.
    """
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/local/sbin"
    found = shutil.which("mke2fs", path=path)
    if found is None:
        raise BackendError("there is no mke2fs to make images with; install e2fsprogs.")
    return found


def _make_ext4(mkfs: str, tree: Path, image: Path, count: int) -> None:
    """Make a file system that contains a tree; the file is sparse."""
    size = 0
    for base, folders, names in os.walk(tree):
        size += 4096 * len(folders)
        for name in names:
            # Round up to whole blocks.
            size += (os.lstat(os.path.join(base, name)).st_size + 4095) // 4096 * 4096
    inodes = count + count // 10 + 200
    blocks = (size + size // 20 + inodes * 512 + (8 << 20)) // 4096
    command = [mkfs, "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-N", str(inodes)]
    command += ["-O", "^has_journal,^resize_inode", "-E", "root_owner=0:0,lazy_itable_init=1"]
    command += ["-L", "pytest-forkd", "-d", str(tree), str(image), str(blocks)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_MKFS_TIMEOUT,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise BackendError(f"mke2fs took more than {_MKFS_TIMEOUT:g} seconds.") from None
    if done.returncode:
        message = re.sub(r"\s+", " ", done.stderr.strip()) or f"exit code {done.returncode}"
        if "No space left" in message:
            raise OSError(28, "No space left on device", str(image))
        raise BackendError(f"mke2fs cannot make the image: {message}")
