"""The kernel that guests boot, and the modules that they need."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import platform
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_forkd.backends.base import BackendError
from pytest_forkd.qemu.store import ArtifactStore

__all__ = ["MODULES", "Kernel", "busybox", "find_kernel", "module_files"]

#: Modules that a guest needs, in the order of loading; they may also be built into the kernel.
MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "virtio_net",
    "overlay",
    "ext4",
)
#: Distribution packages that hold a kernel for virtual machines, best first.
_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64")
_DOWNLOAD_TIMEOUT = 300.0
#: As root, apt downloads as a user of its own, who may not write to the target directory.
_APT_DOWNLOAD = ("apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq")
_INSTALL_KERNEL = (
    "Install one (Debian: apt-get install linux-image-cloud-amd64; Ubuntu: linux-image-virtual;\n"
    "Fedora: kernel-core), or name one with --forkd-kernel."
)


@dataclass(frozen=True)
class Kernel:
    """A kernel and where its modules are.

    :ivar image: the bootable file.
    :ivar release: the output of ``uname -r`` in the guest.
    :ivar modules: the directory with ``modules.dep``; ``None`` if everything is built in.
    """

    image: Path
    release: str
    modules: Path | None

    def identity(self) -> list[Any]:
        """Values that change when the kernel does."""
        info = self.image.stat()
        return [self.release, info.st_size, info.st_mtime_ns]


def find_kernel(store: ArtifactStore, asked: str | None = None) -> Kernel:
    """A kernel for guests: the one that was asked for, else one of this machine, else a download.

    :raises BackendError: if there is none, or if the one that was asked for cannot be used.
    """
    if platform.machine() != "x86_64":
        raise BackendError(
            f"the qemu backend supports x86_64 machines only; this is {platform.machine()}.\n"
            "Use --forkd-backend=process."
        )
    if asked:
        return _asked(Path(asked))
    for image in _newest(Path("/boot").glob("vmlinuz-*")):
        kernel = _usable(image, Path("/lib/modules"))
        if kernel is not None:
            return kernel
    return _kept(store) or _downloaded(store)


def _asked(image: Path) -> Kernel:
    try:
        release = _release(image)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise BackendError(f"--forkd-kernel: {image} cannot be used: {reason}.") from None
    # If it was unpacked from a package, its modules are next to it.
    for base in (Path("/lib/modules"), image.parent.parent / "lib" / "modules", image.parent):
        if (base / release / "modules.dep").is_file():
            return Kernel(image, release, base / release)
    return Kernel(image, release, None)


def _usable(image: Path, modules: Path) -> Kernel | None:
    """The kernel, if it can be read and its modules exist."""
    try:
        kernel = Kernel(image, _release(image), modules / _release(image))
        module_files(kernel, MODULES)
    except (OSError, ValueError, BackendError):
        return None
    return kernel


def _newest(images: Iterable[Path]) -> list[Path]:
    def version(path: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", path.name)]

    # Prefer cloud kernels: they initialise less, so they boot faster, by seconds in emulation.
    return sorted(images, key=lambda path: ("cloud" in path.name, version(path)), reverse=True)


def _release(image: Path) -> str:
    """The version in a bzImage's header (Linux: Documentation/arch/x86/boot.rst).

    :raises ValueError: if the file is not a bzImage.
    """
    with open(image, "rb") as file:
        head = file.read(0x8000)
    if head[0x202:0x206] != b"HdrS":
        raise ValueError("it is no Linux kernel for x86 (bzImage)")
    (offset,) = struct.unpack_from("<H", head, 0x20E)
    text = head[0x200 + offset :].split(b"\0", 1)[0].split(b" ", 1)[0]
    if not offset or not re.fullmatch(rb"[\w.+~-]{1,64}", text):
        raise ValueError("it does not say which version it is")
    return text.decode("ascii")


def _kept(store: ArtifactStore) -> Kernel | None:
    for entry in store.entries():
        if entry.kind == "kernels":
            for image in _newest((entry.path / "boot").glob("vmlinuz-*")):
                kernel = _usable(image, entry.path / "lib" / "modules")
                if kernel is not None:
                    return kernel
    return None


def _downloaded(store: ArtifactStore) -> Kernel:
    """A kernel from a package that is downloaded and unpacked, but not installed.

    :raises BackendError: if there is no way to get one.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise BackendError(f"there is no kernel for the guests.\n{_INSTALL_KERNEL}")
    reasons = []
    for package in _PACKAGES:
        try:
            store.build("kernels", package, lambda path, name=package: _unpack(path, name))  # type: ignore[misc]
        except BackendError as exc:
            reasons.append(str(exc))
            continue
        kernel = _kept(store)
        if kernel is not None:
            return kernel
        reasons.append(f"{package} has no usable kernel")
    raise BackendError(
        f"there is no kernel for the guests, and none could be downloaded: {reasons[0]}.\n"
        f"{_INSTALL_KERNEL}"
    )


def _unpack(folder: Path, package: str) -> dict[str, Any]:
    """Download a package and the kernel package it depends on, and unpack them into ``folder``."""
    depends = _output(["apt-cache", "depends", "--recurse", "--important", package])
    names = sorted(set(re.findall(r"\b(linux-(?:image|modules)-[\w.+-]+)", depends)) | {package})
    with tempfile.TemporaryDirectory(prefix="pytest-forkd-") as temporary:
        _output([*_APT_DOWNLOAD, *names], cwd=temporary)
        for deb in Path(temporary).glob("*.deb"):
            _output(["dpkg-deb", "-x", str(deb), str(folder)])
    # Packages for a merged /usr have them in usr/lib, but they are needed in lib.
    if not (folder / "lib" / "modules").is_dir() and (folder / "usr" / "lib" / "modules").is_dir():
        (folder / "lib").mkdir(exist_ok=True)
        (folder / "usr" / "lib" / "modules").rename(folder / "lib" / "modules")
    for modules in (folder / "lib" / "modules").glob("*"):
        if not (modules / "modules.dep").exists():
            _output(["depmod", "-b", str(folder), modules.name])
    return {"package": package, "packages": names}


def _output(command: list[str], cwd: str | None = None) -> str:
    """Run a command; returns its output.

    :raises BackendError: if it fails.
    """
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_TIMEOUT,
            env={**os.environ, "LC_ALL": "C", "PATH": path},
        )
    except FileNotFoundError:
        raise BackendError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise BackendError(f"{command[0]} took more than {_DOWNLOAD_TIMEOUT:g} seconds") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BackendError(f"{command[0]}: {lines[-1]}")
    return done.stdout


def module_files(kernel: Kernel, names: Iterable[str]) -> list[tuple[str, bytes]]:
    """Name and content of each module that has to be loaded for ``names``, in order.

    :raises BackendError: if one is neither available nor built in.
    """
    if kernel.modules is None:
        return []
    depends: dict[str, list[str]] = {}
    for line in (kernel.modules / "modules.dep").read_text("utf-8").splitlines():
        path, _, others = line.partition(":")
        depends[_module_name(path)] = [path, *reversed(others.split())]
    built_in = set()
    with contextlib.suppress(OSError):
        text = (kernel.modules / "modules.builtin").read_text("utf-8")
        built_in = {_module_name(line) for line in text.splitlines()}
    paths: list[str] = []
    for name in names:
        if name in built_in:
            continue
        if name not in depends:
            raise BackendError(f"the kernel {kernel.release} has no module {name}")
        own, *needed = depends[name]
        paths += [each for each in [*needed, own] if each not in paths]
    return [(_module_name(path) + ".ko", _content(kernel.modules / path)) for path in paths]


def _module_name(path: str) -> str:
    return os.path.basename(path.strip()).partition(".")[0].replace("-", "_")


def _content(path: Path) -> bytes:
    """The content of a module file, which may be compressed."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        try:
            return subprocess.run(
                ["zstd", "-dcq"], input=data, capture_output=True, check=True, timeout=60
            ).stdout
        except (OSError, subprocess.SubprocessError):
            raise BackendError(
                f"{path} is compressed with zstd; install the program zstd to unpack it"
            ) from None
    return data


def busybox(store: ArtifactStore) -> Path:
    """A statically linked busybox, which is a guest's init and shell.

    :raises BackendError: if there is none and none can be downloaded.
    """
    for name in ("busybox-static", "busybox"):
        found = shutil.which(name)
        if found and _is_static(Path(found)):
            return Path(found)
    advice = "Install it (Debian and Ubuntu: apt-get install busybox-static; Fedora: busybox)."
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise BackendError(f"the guests need a statically linked busybox.\n{advice}")
    try:
        entry = store.build("kernels", "busybox-static", _unpack_busybox)
    except BackendError as exc:
        raise BackendError(
            f"the guests need a statically linked busybox, and none could be downloaded: {exc}.\n"
            f"{advice}"
        ) from exc
    return next(path for path in entry.path.rglob("busybox") if _is_static(path))


def _unpack_busybox(folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="pytest-forkd-") as temporary:
        _output([*_APT_DOWNLOAD, "busybox-static"], cwd=temporary)
        for deb in Path(temporary).glob("*.deb"):
            _output(["dpkg-deb", "-x", str(deb), str(folder)])
    if not any(_is_static(path) for path in folder.rglob("busybox")):
        raise BackendError("the package busybox-static holds no static busybox")
    return {"package": "busybox-static"}


def _is_static(path: Path) -> bool:
    """Whether an ELF program is static: it has no program header of type PT_INTERP."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            if head[:5] != b"\x7fELF\x02":
                return False
            offset, size, count = struct.unpack_from("<Q14xHH", head, 32)
            file.seek(offset)
            table = file.read(size * count)
    except (OSError, struct.error):
        return False
    return all(struct.unpack_from("<I", table, size * i)[0] != 3 for i in range(count))
