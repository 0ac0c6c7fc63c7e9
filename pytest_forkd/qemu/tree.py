"""Makes a guest's root file system: this interpreter, what is installed for it, and a shell.

The tree is a copy: the environment itself is not changed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import site
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest_forkd
from pytest_forkd.backends.base import BackendError
from pytest_forkd.runtime.site_directories import site_directories
from pytest_forkd.sync.scan import SyncError, scan

__all__ = ["Contents", "contents", "plant"]

#: Parts of the standard library that no test suite imports; ``test.support`` is kept.
_NOT_NEEDED = frozenset(
    {"ensurepip", "idlelib", "lib2to3/tests", "site-packages", "dist-packages", "turtledemo"}
)
_DATA = (
    "/etc/ca-certificates.conf",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/pki/tls/certs",
    "/etc/ssl/certs",
    "/usr/lib/locale/C.utf8",
    "/usr/lib/ssl",
    "/usr/share/ca-certificates",
    "/usr/share/terminfo/l",
    "/usr/share/terminfo/x",
    "/usr/share/zoneinfo",
)
#: Libraries that are loaded by name when needed, so that ldd does not list them.
_LOADED_BY_NAME = ("libgcc_s.so.1", "libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2")
_FOLDERS = ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "var/tmp")
_APPLETS = """
basename cat chmod cp cut date dd df dirname dmesg du echo env expr false find grep gunzip gzip head
hostname id kill ln ls md5sum mkdir mkfifo mktemp mount mv nproc od ps pwd readlink realpath rm
rmdir sed seq sh sha256sum sleep sort stat stty sync tail tar tee test touch tr true tty umount
uname uniq wc which whoami xargs yes
"""
_ETC = {
    "group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "hostname": "pytest-forkd\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "resolv.conf": "nameserver 10.0.2.3\n",
    "os-release": 'NAME="pytest-forkd guest"\nID=pytest-forkd\n',
}
_LDD_BATCH = 100
_LDD_TIMEOUT = 120.0


@dataclass
class Contents:
    """What goes into a tree; every path is the same here and in the guest.

    :ivar trees: folders that are copied whole, except for outdated bytecode.
    :ivar files: files and links.
    :ivar editable: folders of editable installs; the files that git lists are copied.
    """

    trees: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    editable: list[str] = field(default_factory=list)


def contents(include: Iterable[str] = (), project: str | None = None) -> Contents:
    """What the environment of this interpreter consists of.

    :param include: paths, or names of commands, to add.
    :param project: the root of the tree that is sent before each run; it is left out.
    :raises BackendError: if something to include does not exist.
    """
    found = Contents()
    found.files += _interpreter()
    stdlib = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    packages = [path for path in _site_packages() if os.path.isdir(path)]
    found.trees += [*sorted(stdlib), *packages]
    if sys.prefix != sys.base_prefix:
        found.files.append(os.path.join(sys.prefix, "pyvenv.cfg"))
        found.trees.append(os.path.join(sys.prefix, "bin"))
    found.trees += [path for path in _DATA if os.path.isdir(path)]
    found.files += [path for path in _DATA if os.path.isfile(path)]
    found.editable += [path for path in _editable() if not _is_in(path, project)]
    package = os.path.dirname(os.path.abspath(pytest_forkd.__file__))
    if not any(_is_in(package, path) for path in (*packages, *found.editable)):
        found.trees.append(package)  # even if it is the project, since guests need it to start
    for name in include:
        _include(found, name)
    return found


def _interpreter() -> list[str]:
    """The interpreter's program, all links that lead to it, and its standard library."""
    found = []
    for path in {sys.executable, os.path.join(sys.prefix, "bin", "python"), _base_executable()}:
        seen = set()
        while path and path not in seen and os.path.lexists(path):
            seen.add(path)
            found.append(path)
            if not os.path.islink(path):
                break
            path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    return found


def _base_executable() -> str:
    return str(getattr(sys, "_base_executable", sys.executable))


def _site_packages() -> list[str]:
    """The directories of installed packages; most virtual environments exclude the base's."""
    found = list(site_directories())
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    return sorted(set(found))


def _editable() -> Iterator[str]:
    """The folders of editable installs (PEP 610), and those named in ``.pth`` files."""
    found = set()
    for distribution in importlib.metadata.distributions():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            origin = json.loads(distribution.read_text("direct_url.json") or "{}")
            if origin.get("dir_info", {}).get("editable"):
                found.add(unquote(urlsplit(origin["url"]).path))
    for folder in _site_packages():
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if name.endswith(".pth"):
                    text = Path(folder, name).read_text("utf-8", "replace")
                    found.update(
                        line
                        for line in map(str.strip, text.splitlines())
                        if line.startswith("/") and os.path.isdir(line)
                    )
    for path in sorted(found):
        if not any(path != other and _is_in(path, other) for other in found):
            yield path


def _is_in(path: str, folder: str | None) -> bool:
    return folder is not None and (path + "/").startswith(folder.rstrip("/") + "/")


def _include(found: Contents, name: str) -> None:
    path = os.path.expanduser(name) if "/" in name else shutil.which(name)
    if path is None or not os.path.lexists(path):
        raise BackendError(
            f"forkd_image_include: there is no {'file' if '/' in name else 'command'} {name!r}."
        )
    path = os.path.abspath(path)
    if os.path.isdir(path):
        found.trees.append(path)
        return
    while os.path.islink(path):
        found.files.append(path)
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    found.files.append(path)
    if os.path.basename(path) == "git":
        # git's subcommands are separate programs, in a folder of their own.
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                [path, "--exec-path"], capture_output=True, text=True, timeout=10, check=True
            )
            found.trees.append(done.stdout.strip())


def plant(
    root: Path, what: Contents, busybox: Path, progress: Callable[[float], None] = lambda _: None
) -> int:
    """Make a tree.

    :param root: an empty folder on the same file system as the cache.
    :param progress: called with the fraction that is done, from 0 to 1.
    :returns: how many files and folders it has.
    :raises BackendError: if something cannot be read.
    """
    planter = _Planter(str(root))
    for name in _FOLDERS:
        planter.folder(f"/{name}")
    for name in ("tmp", "var/tmp"):
        os.chmod(root / name, 0o1777)  # noqa: S103 - as everywhere
    total = len(what.trees) + len(what.editable) + 1
    for number, tree in enumerate(what.trees):
        planter.tree(tree)
        progress((number + 1) / total * 0.8)
    for path in what.files:
        planter.file(path)
    for path in what.editable:
        planter.project(path)
    progress(0.8)
    for path in _libraries(planter.programs):
        planter.file(path)
    for name, text in _ETC.items():
        (root / "etc" / name).write_text(text)
    planter.shell(busybox)
    progress(1.0)
    return planter.count


class _Planter:
    def __init__(self, root: str) -> None:
        self.root = root
        self.count = 0
        #: Paths on this machine of ELF programs and libraries.
        self.programs: list[str] = []
        self._folders: set[str] = {"/"}

    def folder(self, path: str) -> None:
        """Add a folder; a link to a folder is added as a link."""
        if path in self._folders:
            return
        self.folder(os.path.dirname(path))
        self._folders.add(path)
        if os.path.islink(path) and os.path.isdir(path):
            target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
            self.folder(target)
            self._make(os.symlink, os.readlink(path), self.root + path)
        else:
            self._make(os.mkdir, self.root + path, 0o755)

    def tree(self, path: str) -> None:
        """Add a folder and its contents."""
        is_stdlib = path in (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
        for base, folders, names in os.walk(path):
            inner = os.path.relpath(base, path)
            self.folder(base)
            if is_stdlib:
                kept = [name for name in folders if _is_needed(os.path.normpath(f"{inner}/{name}"))]
                folders[:] = kept
            for name in [*names, *(n for n in folders if os.path.islink(f"{base}/{n}"))]:
                if not name.endswith((".opt-1.pyc", ".opt-2.pyc")):
                    self.file(f"{base}/{name}")

    def project(self, path: str) -> None:
        """Add the source files of a project."""
        try:
            found = scan(path)
        except SyncError as exc:
            raise BackendError(f"{path} is installed in place and cannot be read: {exc}") from exc
        for name in found.manifest:
            self.file(os.path.join(path, name))

    def file(self, path: str) -> None:
        """Add a file or link, at the same path."""
        self.folder(os.path.dirname(path))
        there = self.root + path
        try:
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                self._make(os.symlink, os.readlink(path), there)
                target = os.path.realpath(path)
                if os.path.isfile(target) and not os.path.lexists(self.root + target):
                    self.file(target)
            elif stat.S_ISREG(info.st_mode):
                self._copy(path, there)
                if info.st_size > 64 and (info.st_mode & 0o111 or ".so" in path):
                    with open(path, "rb") as file:
                        if file.read(4) == b"\x7fELF":
                            self.programs.append(path)
        except PermissionError:
            return  # this user may not read it, so no test can need it
        except FileNotFoundError:
            return  # it has just been removed

    def _copy(self, path: str, there: str) -> None:
        if os.path.lexists(there):
            return
        self.count += 1
        # Not a hard link, although that would be faster: it changes the file's ctime, as if the
        # file had been written, so that every kept parent would be stale.
        shutil.copy2(path, there)

    def _make(self, function: Callable[..., object], *args: object) -> None:
        self.count += 1
        with contextlib.suppress(FileExistsError):
            function(*args)

    def shell(self, busybox: Path) -> None:
        """Add a shell and the usual commands, unless the tree has them already."""
        shutil.copy2(busybox, f"{self.root}/usr/bin/busybox")
        os.chmod(f"{self.root}/usr/bin/busybox", 0o755)  # noqa: S103 - a program
        for name in _APPLETS.split():
            if not os.path.lexists(f"{self.root}/usr/bin/{name}"):
                self._make(os.symlink, "busybox", f"{self.root}/usr/bin/{name}")
        if not os.path.islink(f"{self.root}/bin"):
            for name in _APPLETS.split():
                self._make(os.symlink, f"/usr/bin/{name}", f"{self.root}/bin/{name}")


def _is_needed(inner: str) -> bool:
    if inner in _NOT_NEEDED or inner.startswith("config-"):
        return False
    return not (inner.startswith("test/") and inner not in ("test/support", "test/__pycache__"))


def _libraries(programs: list[str]) -> set[str]:
    """The shared libraries that programs and libraries need, including the dynamic loader."""
    found: set[str] = set()
    for start in range(0, len(programs), _LDD_BATCH):
        batch = programs[start : start + _LDD_BATCH]
        try:
            done = subprocess.run(
                ["ldd", *batch],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="surrogateescape",
                timeout=_LDD_TIMEOUT,
                env={**os.environ, "LC_ALL": "C"},
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise BackendError(f"ldd cannot tell which libraries are needed: {exc}") from exc
        # "libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x...)", "/lib64/ld-linux... (0x...)"
        found.update(re.findall(r"(?:=> |^\s+)(/.+) \(0x[0-9a-f]+\)$", done.stdout, re.MULTILINE))
    folders = {os.path.dirname(path) for path in found}
    found.update(
        path
        for name in _LOADED_BY_NAME
        for folder in folders
        if os.path.exists(path := os.path.join(folder, name))
    )
    return found
