"""The functions that read files are stood in for while modules are imported, and only then."""

from __future__ import annotations

import builtins
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pytest_forkd.parent.imports.reads import Reads

FUNCTIONS = [
    (builtins, "open"),
    (io, "open"),
    (io, "open_code"),
    *((os, name) for name in ("open", "listdir", "scandir", "stat")),
]


def stamp(path: str) -> tuple[int, ...] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@pytest.fixture
def reads() -> Iterator[Reads]:
    before = [getattr(owner, name) for owner, name in FUNCTIONS]
    yield Reads(stamp, 1_000_000)
    assert all(
        getattr(owner, name) is original
        for (owner, name), original in zip(FUNCTIONS, before, strict=True)
    )


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file that was written long enough ago to be told from a later one."""
    path = tmp_path / "old.txt"
    path.write_text("1")
    time.sleep(0.01)
    return path


def test_a_module_that_imports_a_function_by_name_keeps_the_real_one(
    reads: Reads, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "by_name.py").write_text(
        "from io import open as named\n"
        "from os import scandir\n"
        "import os\n"
        "class Files:\n"
        "    stat = os.stat\n"
        "    def open(self, path):\n"
        "        return self.stat(path)\n"
        f"SIZE = Files().open({str(old)!r}).st_size\n"
        "IN_SET = os.stat in os.supports_dir_fd\n"
        f"with named({str(old)!r}) as file: TEXT = file.read()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "by_name", raising=False)
    with reads.recorded():
        import by_name  # type: ignore[import-not-found]
    module: Any = by_name
    monkeypatch.delitem(sys.modules, "by_name")
    assert module.named is open
    assert module.scandir is os.scandir
    assert vars(module.Files)["stat"] is os.stat
    assert (module.SIZE, module.IN_SET, module.TEXT) == (1, True, "1")
    assert reads.take() is None
    old.write_text("2")
    assert reads.changed() == str(old)


def test_objects_that_are_made_when_they_are_asked_for_are_not_made(
    reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Django's settings, modules that load what they hold when their ``__dict__`` is read."""

    def asked(_self: object) -> Any:
        raise RuntimeError("this loads everything")

    lazy = type("Lazy", (), {"__class__": property(asked)})()
    lazy_module = type("LazyModule", (ModuleType,), {"__dict__": property(asked)})("lazy_module")
    with reads.recorded():
        lazy_module.lazy = lazy
        lazy_module.named = open
        monkeypatch.setitem(sys.modules, "lazy_module", lazy_module)
        monkeypatch.setitem(sys.modules, "no_module", lazy)
    assert lazy_module.named is open


def test_what_is_wrong_is_wrong_as_ever(reads: Reads, tmp_path: Path) -> None:
    with reads.recorded():
        calls: list[tuple[Any, tuple[object, ...]]] = [
            (open, ()),
            (os.listdir, (1, 2, 3)),
            (os.stat, (None,)),
        ]
        for function, arguments in calls:
            with pytest.raises(TypeError) as caught:
                function(*arguments)
            assert "_StandIn" not in str(caught.value)
        with pytest.raises(FileNotFoundError):
            open(tmp_path / "missing")  # noqa: SIM115
        with pytest.raises(ValueError, match="mode"):
            open(tmp_path / "missing", "?")  # noqa: SIM115
    assert reads.take() is None
    assert reads.changed() is None


def test_what_an_import_writes_for_itself_is_no_change(reads: Reads, tmp_path: Path) -> None:
    with reads.recorded():
        (tmp_path / "log.txt").write_text("only written")
        if not (tmp_path / "cache").exists():
            (tmp_path / "cache").mkdir()
        (tmp_path / "scratch.txt").write_text("1")
        (tmp_path / "scratch.txt").read_text()
        (tmp_path / "scratch.txt").unlink()
        Path("/proc/self/status").read_text()
    assert reads.take() is None
    (tmp_path / "log.txt").write_text("written again")
    assert reads.changed() is None
    (tmp_path / "cache").rmdir()
    assert reads.changed() == str(tmp_path / "cache")


def test_a_file_that_was_just_written_is_doubtful(tmp_path: Path) -> None:
    reads = Reads(stamp, 60 * 10**9)  # a busy machine takes its time between both
    with reads.recorded():
        (tmp_path / "new.txt").write_text("1")
        (tmp_path / "new.txt").read_text()
    assert reads.take() == str(tmp_path / "new.txt")


def test_what_is_kept_of_a_function_notes_nothing_later(
    reads: Reads, old: Path, tmp_path: Path
) -> None:
    with reads.recorded():
        kept: list[Any] = [open, os.listdir, os.stat]
    with kept[0](old):
        kept[1](tmp_path)
        with pytest.raises(FileNotFoundError):
            kept[2](tmp_path / "missing")
    reads.take()
    old.write_text("22")
    (tmp_path / "missing").touch()
    assert reads.changed() is None


def test_files_that_are_no_distributions_do_not_count_where_those_are_looked_for(
    reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    monkeypatch.syspath_prepend(tmp_path)
    with reads.recorded(), pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("surely-not-installed")
    (tmp_path / "report.csv").touch()
    assert reads.changed() is None
    (tmp_path / "other-1.0.dist-info").mkdir()
    assert reads.changed() == str(tmp_path / "other-1.0.dist-info")
