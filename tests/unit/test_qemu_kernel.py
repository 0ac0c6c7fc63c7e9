"""Which kernel guests boot, which modules it is given, and in which order."""

from __future__ import annotations

import gzip
import lzma
import platform
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from pytest_forkd.backends.base import BackendError
from pytest_forkd.qemu import kernel as kernels
from pytest_forkd.qemu.cpio import archive
from pytest_forkd.qemu.kernel import Kernel, find_kernel, module_files
from pytest_forkd.qemu.store import ArtifactStore

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the qemu backend is for x86_64"
)


def bz_image(version: str) -> bytes:
    data = bytearray(0x4000)
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x20E, 0x1000)
    text = version.encode() + b" (somebody) #1 SMP\0"
    data[0x1200 : 0x1200 + len(text)] = text
    return bytes(data)


def modules(folder: Path, files: dict[str, bytes], dep: str, builtin: str = "") -> Path:
    for name, content in files.items():
        path = folder / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modules.dep").write_text(dep)
    (folder / "modules.builtin").write_text(builtin)
    return folder


def test_the_kernel_says_which_it_is(tmp_path: Path) -> None:
    image = tmp_path / "boot" / "vmlinuz"
    image.parent.mkdir()
    image.write_bytes(bz_image("6.1.0-9-cloud"))
    modules(tmp_path / "lib" / "modules" / "6.1.0-9-cloud", {}, "")
    found = find_kernel(ArtifactStore(tmp_path / "cache"), str(image))
    assert found == Kernel(image, "6.1.0-9-cloud", tmp_path / "lib/modules/6.1.0-9-cloud")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no Linux kernel"),
        (b"\x7fELF" + bytes(9000), "no Linux kernel"),
        (bz_image("not a version"[:0]), "does not say which version"),
        (bz_image("../../etc"), "does not say which version"),
    ],
)
def test_what_is_no_kernel_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "vmlinuz").write_bytes(content)
    with pytest.raises(BackendError, match=f"--forkd-kernel: .*{why}"):
        find_kernel(ArtifactStore(tmp_path / "cache"), str(tmp_path / "vmlinuz"))


def test_modules_are_loaded_in_order_each_once_however_compressed(tmp_path: Path) -> None:
    folder = modules(
        tmp_path,
        {
            "virtio.ko.xz": lzma.compress(b"virtio"),
            "virtio_ring.ko.gz": gzip.compress(b"ring"),
            "virtio-rng.ko": b"rng",
            "virtio_blk.ko": b"blk",
        },
        "kernel/virtio_ring.ko.gz:\n"
        "kernel/virtio.ko.xz: kernel/virtio_ring.ko.gz\n"
        "kernel/virtio-rng.ko: kernel/virtio.ko.xz kernel/virtio_ring.ko.gz\n"
        "kernel/virtio_blk.ko: kernel/virtio.ko.xz kernel/virtio_ring.ko.gz\n",
        "kernel/fs/ext4/ext4.ko\n",
    )
    kernel = Kernel(tmp_path / "vmlinuz", "6.1", folder)
    assert module_files(kernel, ["virtio_rng", "virtio_blk", "ext4"]) == [
        ("virtio_ring.ko", b"ring"),
        ("virtio.ko", b"virtio"),
        ("virtio_rng.ko", b"rng"),
        ("virtio_blk.ko", b"blk"),
    ]
    with pytest.raises(BackendError, match=r"the kernel 6.1 has no module overlay"):
        module_files(kernel, ["overlay"])


def test_without_any_kernel_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_usable", lambda image, modules: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"no kernel for the guests.\nInstall one \(Debian"):
        find_kernel(ArtifactStore(tmp_path))


def test_a_download_that_fails_is_told_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_usable", lambda image, modules: None)
    for name in ("apt-get", "apt-cache", "dpkg-deb"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'E: no network here' >&2\nexit 100\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    store = ArtifactStore(tmp_path / "cache")
    with pytest.raises(BackendError, match=r"none could be downloaded: .*no network here") as info:
        find_kernel(store)
    assert "--forkd-kernel" in str(info.value)
    assert store.entries() == []


def test_a_busybox_that_is_not_static_will_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dynamic = shutil.which("ls")
    assert dynamic is not None
    (tmp_path / "busybox").symlink_to(dynamic)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"statically linked busybox.\nInstall it"):
        kernels.busybox(ArtifactStore(tmp_path))


def test_archives_are_what_cpio_reads(tmp_path: Path) -> None:
    reader = shutil.which("cpio") or shutil.which("busybox")
    if reader is None:
        pytest.skip("there is neither cpio nor busybox")
    data = archive(
        {
            "folder": (stat.S_IFDIR | 0o755, b""),
            "folder/three": (stat.S_IFREG | 0o644, b"abc"),
            "folder/empty": (stat.S_IFREG | 0o600, b""),
            "program": (stat.S_IFREG | 0o755, bytes(range(256)) * 5),
        }
    )
    assert len(data) % 4 == 0
    command = [reader] if reader.endswith("cpio") else [reader, "cpio"]
    subprocess.run([*command, "-id"], input=data, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "folder" / "three").read_bytes() == b"abc"
    assert (tmp_path / "folder" / "empty").read_bytes() == b""
    assert (tmp_path / "program").read_bytes() == bytes(range(256)) * 5
    assert (tmp_path / "program").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "folder" / "empty").stat().st_mode & 0o777 == 0o600
