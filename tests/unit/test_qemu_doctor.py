"""``pytest-forkd doctor --backend qemu``: what is missing, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_forkd.commands import main as cli
from pytest_forkd.qemu import doctor as diagnosis
from pytest_forkd.qemu.accelerator import Accelerator, is_new_enough
from pytest_forkd.qemu.kernel import Kernel


def test_nothing_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("pytest_forkd.qemu.kernel._usable", lambda image, modules: None)
    assert cli.main(["doctor", "--backend", "qemu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAIL QEMU: the qemu backend needs QEMU")
    assert "apt-get install qemu-system-x86" in lines[1]
    for start in ("FAIL kernel:", "FAIL busybox:", "  -  KVM:", "ok   images: none is kept"):
        assert any(line.startswith(start) for line in lines), start


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (Accelerator("kvm"), "ok   KVM: it works"),
        (Accelerator("tcg", "there is no /dev/kvm. Do this"), "warn KVM: there is no /dev/kvm;"),
    ],
)
def test_kvm_is_a_warning_at_most(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: Accelerator,
    line: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel = Kernel(tmp_path / "vmlinuz", "6.1", None)
    monkeypatch.setattr(diagnosis, "find_qemu", lambda: "/qemu")
    monkeypatch.setattr(diagnosis, "qemu_version", lambda program: "QEMU 7.2")
    monkeypatch.setattr(diagnosis, "find_kernel", lambda store, asked: kernel)
    monkeypatch.setattr(diagnosis, "busybox", lambda store: tmp_path)
    monkeypatch.setattr(diagnosis, "initramfs", lambda kernel, shell: b"")
    monkeypatch.setattr(diagnosis, "mke2fs", lambda: "/sbin/mke2fs")
    monkeypatch.setattr(diagnosis, "find_accelerator", lambda *args, **kwargs: found)
    monkeypatch.setattr(diagnosis, "available_memory", lambda: 100_000)
    assert cli.main(["doctor", "--backend", "qemu"]) == 0
    text = capsys.readouterr().out
    assert line in text
    assert ("Do this" in text) == (found.name == "tcg")


def test_too_little_memory_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(diagnosis, "available_memory", lambda: 300)
    assert diagnosis._memory(4).level == "problem"
    assert diagnosis._memory(2).level == "warning"
    assert "Use fewer workers" in diagnosis._memory(4).advice


@pytest.mark.parametrize(
    ("version", "enough"),
    [
        ("QEMU emulator version 7.2.11 (Debian 1:7.2+dfsg-7+deb12u7)", True),
        ("QEMU emulator version 10.0.2", True),
        ("QEMU emulator version 7.1.0", False),
        ("QEMU emulator version 4.2.1 (Debian 1:4.2-3ubuntu6)", False),
        ("a QEMU of my own", True),
    ],
)
def test_which_qemu_is_new_enough(version: str, enough: bool) -> None:
    assert is_new_enough(version) is enough
