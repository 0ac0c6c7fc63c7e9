"""What goes into the image that guests boot."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

import pytest_forkd
from pytest_forkd.backends.base import BackendError
from pytest_forkd.qemu.accelerator import find_accelerator
from pytest_forkd.qemu.image import image_fingerprint
from pytest_forkd.qemu.kernel import Kernel
from pytest_forkd.qemu.store import ArtifactStore
from pytest_forkd.qemu.tree import Contents, contents, plant
from pytest_forkd.qemu.vm import Hardware


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    return Kernel(tmp_path / "vmlinuz", "6.1", None)


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    (tmp_path / "busybox").write_bytes(b"a program")
    return tmp_path / "busybox"


def test_the_environment_is_all_there() -> None:
    found = contents()
    assert sysconfig.get_path("stdlib") in found.trees
    assert sysconfig.get_path("purelib") in found.trees
    assert sys.executable in found.files
    assert os.path.realpath(sys.executable) in found.files, "with every link on the way to it"
    package = os.path.dirname(pytest_forkd.__file__)
    assert any(package.startswith(path) for path in (*found.trees, *found.editable))


def test_what_is_to_be_included_has_to_exist() -> None:
    with pytest.raises(BackendError, match="forkd_image_include: there is no command 'no-such'"):
        contents(["no-such"])
    with pytest.raises(BackendError, match="forkd_image_include: there is no file '/no/such'"):
        contents(["/no/such"])


def test_a_command_is_included_with_every_link_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").write_text("#!/bin/sh\n")
    (tmp_path / "real").chmod(0o755)
    (tmp_path / "tool").symlink_to("real")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = contents(["tool", str(tmp_path)])
    assert {str(tmp_path / "tool"), str(tmp_path / "real")} <= set(found.files)
    assert str(tmp_path) in found.trees


def test_files_links_libraries_and_a_shell_are_planted(tmp_path: Path, shell: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_text("content")
    (source / "inner" / "run").write_text("program")
    (source / "inner" / "run").chmod(0o755)
    (source / "link").symlink_to("inner/file")
    (source / "folder").symlink_to("inner")
    (tmp_path / "outside").write_text("pointed to")
    (source / "away").symlink_to(tmp_path / "outside")
    program = shutil.which("ls")
    assert program is not None
    root = tmp_path / "root"
    root.mkdir()
    done: list[float] = []
    count = plant(root, Contents([str(source)], [program]), shell, done.append)
    there = Path(f"{root}{source}")
    assert (there / "inner" / "file").read_text() == "content"
    assert os.access(there / "inner" / "run", os.X_OK)
    assert os.readlink(there / "link") == "inner/file"
    assert os.readlink(there / "folder") == "inner"
    assert Path(f"{root}{tmp_path}/outside").read_text() == "pointed to"
    assert os.path.lexists(f"{root}{program}")
    assert list(root.rglob("libc.so*")), "what the program needs"
    assert list(root.rglob("ld-linux*")) or list(root.rglob("ld-musl*"))
    assert (root / "etc" / "passwd").read_text().startswith("root:")
    assert (root / "usr" / "bin" / "busybox").read_bytes() == b"a program"
    assert os.path.lexists(root / "bin" / "sh")
    assert done[-1] == 1.0
    assert done == sorted(done)
    assert count >= sum(1 for _ in root.rglob("*")) - 20


def test_the_environment_stays_as_it_is(tmp_path: Path, shell: Path) -> None:
    """A hard link changes a file's status, and each kept parent that has loaded it was remade."""
    source = tmp_path / "source" / "file"
    source.parent.mkdir()
    source.write_text("content")
    before = source.stat()
    root = tmp_path / "root"
    root.mkdir()
    plant(root, Contents([str(source.parent)]), shell)
    copy, after = Path(f"{root}{source}"), source.stat()
    assert copy.read_text() == "content"
    assert copy.stat().st_ino != after.st_ino
    assert (after.st_ctime_ns, after.st_nlink) == (before.st_ctime_ns, 1)


def test_another_environment_has_another_image(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = image_fingerprint(kernel, [], None)
    assert image_fingerprint(kernel, [], None) == first
    assert image_fingerprint(kernel, ["git"], None) != first
    packages = tmp_path / "site-packages"
    (packages / "new-1.dist-info").mkdir(parents=True)
    (packages / "new-1.dist-info" / "RECORD").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    other = image_fingerprint(kernel, [], None)
    assert other != first
    os.utime(packages / "new-1.dist-info" / "RECORD", (1, 1))
    assert image_fingerprint(kernel, [], None) not in (first, other)
    os.utime(kernel.image, (1, 1))
    assert image_fingerprint(kernel, [], None) not in (first, other)


def test_without_kvm_it_is_said_why(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_forkd.qemu.accelerator._KVM", str(tmp_path / "kvm"))
    store = ArtifactStore(tmp_path / "store")
    found = find_accelerator(store, "/bin/false", kernel, tmp_path / "initrd")
    assert found.name == "tcg"
    assert f"there is no {tmp_path / 'kvm'}" in found.why_not
    # A device that does not do what KVM does: it is tried, with a limit, and that is remembered.
    (tmp_path / "kvm").write_text("")
    (tmp_path / "initrd").write_bytes(b"")
    tried = tmp_path / "tried"
    (tmp_path / "qemu").write_text(
        f"#!/bin/sh\necho 'qemu-system: no KVM' >&2; echo x >>{tried}\nexit 1\n"
    )
    (tmp_path / "qemu").chmod(0o755)
    for _ in range(2):
        found = find_accelerator(store, str(tmp_path / "qemu"), kernel, tmp_path / "initrd")
        assert found.name == "tcg"
        assert "a guest does not boot with it (qemu-system: no KVM)" in found.why_not
    assert tried.read_text() == "x\n"
    find_accelerator(store, str(tmp_path / "qemu"), kernel, tmp_path / "initrd", anew=True)
    assert tried.read_text() == "x\nx\n"


def test_a_machine_is_started_with_what_was_asked_for(tmp_path: Path) -> None:
    image = tmp_path / "with,comma"
    hardware = Hardware("qemu", "kvm", 512, 3, image)
    line = " ".join(hardware.arguments("/memory", share=False))
    for part in (
        "-accel kvm",
        "-cpu host",
        "-smp 3",
        "-m 512M",
        "mem-path=/memory,share=off",
        "-sandbox on,",
        "spawn=deny",
        f"file={tmp_path}/with,,comma",
        "readonly=on",
    ):
        assert part in line
    assert "-netdev" not in line
    emulated = Hardware("qemu", "tcg", 512, 1, image, network=True)
    line = " ".join(emulated.arguments("/memory", share=True))
    assert "-cpu max" in line
    assert "share=on" in line
    assert "-netdev user" in line
