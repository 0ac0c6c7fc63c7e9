"""Keeps the guests of a forkd daemon from writing to the disk that they all share.

Machines that forkd restores from one snapshot share one file as their root file system, and each
may write to it. If two do, the file is damaged, and so is the snapshot. So before the snapshot is
taken, directories that are written to are moved to memory, which each machine has for itself, and
the root file system is made read-only. A test that writes elsewhere gets an error.

Sources: mount(2), tmpfs(5).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterable

__all__ = ["mount", "move_to_memory", "prepare_disk", "runs_in_forkd"]

_MS_RDONLY, _MS_REMOUNT, _MS_MOVE = 1, 32, 8192
#: Directories that every guest writes to; the relay's socket is in the first.
_USUAL = ("/run", "/root", "/var/tmp")  # noqa: S108 - a guest's own
_AGENT = "forkd-agent"


def runs_in_forkd() -> bool:
    """Whether this is a guest of forkd: there, forkd's agent is process 1."""
    try:
        with open("/proc/1/cmdline", "rb") as file:
            return _AGENT.encode() in file.read()
    except OSError:
        return False


def prepare_disk(directories: Iterable[str]) -> list[str]:
    """Move directories to memory, and make the root file system read-only.

    Does nothing outside a guest of forkd.

    :param directories: further ones, such as the project's and those that its tests write to.
    :returns: messages about what failed, for the guest's console.
    """
    if not runs_in_forkd():
        return []
    if os.environ.get("HOME", "/") == "/":  # the kernel's idea of the first process's home
        os.environ["HOME"] = "/root"
    problems = []
    for directory in dict.fromkeys((*_USUAL, *map(os.path.abspath, directories))):
        try:
            if not _in_memory(directory):
                move_to_memory(directory)
        except OSError as exc:
            problems.append(f"{directory} stays on the disk: {exc}")
    for target, flags, data in (
        ("/tmp", _MS_REMOUNT, "size=50%"),  # noqa: S108 - forkd's init has given it 256 MiB
        ("/", _MS_REMOUNT | _MS_RDONLY, None),
    ):
        try:
            mount(None, target, None, flags, data)
        except OSError as exc:
            problems.append(f"{target} stays as it is: {exc}")
    return problems


def move_to_memory(directory: str) -> None:
    """Move a directory, with its contents, from the disk to memory.

    :raises OSError: if that is not allowed, or does not fit; the directory is then unchanged.
    """
    os.makedirs(directory, exist_ok=True)
    stage = tempfile.mkdtemp(prefix="pytest-forkd-")
    try:
        mount("tmpfs", stage, "tmpfs", 0, f"mode={os.stat(directory).st_mode & 0o7777:o}")
        try:
            shutil.copytree(directory, stage, symlinks=True, dirs_exist_ok=True)
            mount(stage, directory, None, _MS_MOVE, None)
        except (OSError, shutil.Error) as exc:
            _libc().umount2(stage.encode(), 2)  # MNT_DETACH
            raise OSError(str(exc)) from exc
    finally:
        os.rmdir(stage)


def _in_memory(directory: str) -> bool:
    """Whether a directory is on another file system than the root already."""
    try:
        return os.stat(directory).st_dev != os.stat("/").st_dev
    except FileNotFoundError:
        return False


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None) -> None:
    """Call mount(2); raises OSError if that is not allowed."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    if _libc().mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
