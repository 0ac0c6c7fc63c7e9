"""Changes after which a kept parent would hold what a new one would not, and others."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_forkd.parent.kept.store import ParentStore
from tests.conftest import Runner

SUITE = """
    import heavy

    def test_value():
        with open("seen", "a") as file:
            file.write(f"{heavy.VALUE}\\n")
"""
HEAVY = """\
import os.path
try:
    from extra import VALUE
except ImportError:
    VALUE = 1
try:
    from heavy_parts import speedups
except ImportError:
    pass
else:
    VALUE = speedups.VALUE
import linked
if linked.VALUE != 1:
    VALUE = linked.VALUE
import reading
VALUE = max(VALUE, *reading.values())
"""
READING = """\
import configparser
import glob
import os
import pkgutil
from io import open as io_open
from pathlib import Path

HERE = Path(__file__).parent

def opened(name):
    with open(os.path.join(HERE, name)) as file:
        return int(file.read())

def number():
    number = os.open(HERE / "number.txt", os.O_RDONLY)
    try:
        return int(os.read(number, 9))
    finally:
        os.close(number)

def missing():
    try:
        return opened("missing.txt")
    except FileNotFoundError:
        return 1

def configured():
    parser = configparser.ConfigParser({"value": "1"})
    parser.read([HERE / "reading.ini", "reading.ini"])
    return parser.getint("DEFAULT", "value")

def listed(names):
    return 2 if [name for name in names if name.endswith(".plugin")] else 1

def values():
    with io_open(HERE / "io.txt") as file:
        yield int(file.read())
    yield opened("data.txt")
    yield opened("data_link.txt")
    yield number()
    yield missing()
    yield configured()
    yield int(pkgutil.get_data("held", "value.txt"))
    yield int((HERE / "path.txt").read_text())
    yield 2 if os.path.exists(HERE / "flag") else 1
    yield 2 if (HERE / "flags" / "flag").is_file() else 1
    yield listed(os.listdir(HERE / "listed"))
    yield listed(entry.name for entry in os.scandir(HERE / "scanned"))
    yield listed(path.name for path in (HERE / "iterated").iterdir())
    yield listed(glob.glob(os.path.join(HERE, "globbed", "*")))
"""


class Place:
    """A folder ``site-packages`` on the path, another one before it, and the suite's own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.site = root / "lib" / "site-packages"
        self.early = root / "early"
        self.absent = root / "absent"
        for folder in (self.site, self.early, self.site / "heavy_parts"):
            folder.mkdir(parents=True)
        self.write(self.site / "heavy.py", HEAVY)
        self.write(self.site / "heavy_parts" / "__init__.py", "")
        self.write(self.site / "linked_1.py", "VALUE = 1\n")
        self.write(self.site / "linked_2.py", "VALUE = 2\n")
        (self.site / "linked.py").symlink_to("linked_1.py")
        self.write(self.site / "reading.py", READING)
        for name in ("io", "data", "number", "path", "data_1", "data_2"):
            self.write(self.site / f"{name}.txt", "1")
        self.write(self.site / "data_2.txt", "2")
        (self.site / "data_link.txt").symlink_to("data_1.txt")
        self.write(self.site / "held" / "value.txt", "1")
        self.write(self.site / "held" / "__init__.py", "")
        for name in ("listed", "scanned", "iterated", "globbed"):
            self.write(self.site / name / "first.txt", "")

    @staticmethod
    def write(path: Path, text: str) -> None:
        """Write a file that looks old."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (1_700_000_000, 1_700_000_000))

    @property
    def heavier(self) -> str:
        """Another text of the same size."""
        return HEAVY.replace("VALUE = 1\n", "VALUE = 2\n")


@pytest.fixture
def place(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Place:
    found = Place(pytester.path)
    path = [found.absent, found.early, found.site]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, path)))
    # A file of bytecode tells its source by time and size alone, for plain pytest, too.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    pytester.makepyfile(test_it=SUITE)
    return found


def pids() -> set[int]:
    """Of the parents that are kept."""
    found = set()
    for connection in ParentStore.find().connections():
        with contextlib.closing(connection):
            connection.send({"status": {}})
            found.add(int(connection.receive(30).message["status"]["pid"]))
    return found


def _rewritten(place: Place) -> None:
    with open(place.site / "heavy.py", "r+") as file:
        file.write(place.heavier)
    os.utime(place.site / "heavy.py", (1_700_000_000, 1_700_000_000))


def _another_inode(place: Place) -> None:
    place.write(place.site / "new", place.heavier)
    os.replace(place.site / "new", place.site / "heavy.py")


def _edited(place: Place) -> None:
    place.write(place.site / "heavy.py", HEAVY + "VALUE = 2\n")


def _touched_only(place: Place) -> None:
    (place.site / "heavy.py").write_text(place.heavier)


def _removed(place: Place) -> None:
    (place.site / "heavy.py").unlink()
    place.write(place.root / "heavy.py", place.heavier)


def _link_switched(place: Place) -> None:
    (place.site / "linked.py").unlink()
    (place.site / "linked.py").symlink_to("linked_2.py")


def _link_made_a_file(place: Place) -> None:
    (place.site / "linked.py").unlink()
    place.write(place.site / "linked.py", "VALUE = 2\n")


def _target_of_a_link_rewritten(place: Place) -> None:
    place.write(place.site / "linked_1.py", "VALUE = 2\n")


def _folder_switched(place: Place) -> None:
    shutil.copytree(place.site, place.root / "lib" / "new", symlinks=True)
    place.write(place.root / "lib" / "new" / "heavy.py", place.heavier)
    place.site.rename(place.root / "lib" / "old")
    (place.root / "lib" / "new").rename(place.site)


def _missing_one_came(place: Place) -> None:
    place.write(place.early / "extra.py", "VALUE = 2\n")


def _missing_one_came_as_a_package(place: Place) -> None:
    place.write(place.early / "extra" / "__init__.py", "VALUE = 2\n")


def _missing_one_came_in_site_packages(place: Place) -> None:
    place.write(place.site / "extra.py", "VALUE = 2\n")


def _missing_one_came_in_a_folder_that_was_absent(place: Place) -> None:
    place.write(place.absent / "extra.py", "VALUE = 2\n")


def _missing_part_of_a_package_came(place: Place) -> None:
    place.write(place.site / "heavy_parts" / "speedups.py", "VALUE = 2\n")


def _hidden_by_a_module(place: Place) -> None:
    place.write(place.early / "heavy.py", place.heavier)


def _hidden_by_a_package(place: Place) -> None:
    place.write(place.early / "heavy" / "__init__.py", place.heavier)


def _hidden_by_a_package_beside_it(place: Place) -> None:
    place.write(place.site / "heavy" / "__init__.py", place.heavier)


def _hidden_in_a_folder_that_was_absent(place: Place) -> None:
    place.write(place.absent / "heavy.py", place.heavier)


def _part_of_a_package_hidden_with_it(place: Place) -> None:
    place.write(place.early / "heavy_parts" / "__init__.py", "")
    place.write(place.early / "heavy_parts" / "speedups.py", "VALUE = 2\n")


def _hidden_by_a_link(place: Place) -> None:
    place.write(place.root / "elsewhere.py", place.heavier)
    (place.early / "heavy.py").symlink_to(place.root / "elsewhere.py")


def _written(*parts: str, text: str = "2") -> Callable[[Place], None]:
    def change(place: Place) -> None:
        place.write(place.site.joinpath(*parts), text)

    change.__name__ = "data_" + "_".join(parts).replace(".", "_")
    return change


def _data_link_switched(place: Place) -> None:
    (place.site / "data_link.txt").unlink()
    (place.site / "data_link.txt").symlink_to("data_2.txt")


STALE = [
    _rewritten,
    _another_inode,
    _edited,
    _touched_only,
    _removed,
    _link_switched,
    _link_made_a_file,
    _target_of_a_link_rewritten,
    _folder_switched,
    _missing_one_came,
    _missing_one_came_as_a_package,
    _missing_one_came_in_site_packages,
    _missing_one_came_in_a_folder_that_was_absent,
    _missing_part_of_a_package_came,
    _hidden_by_a_module,
    _hidden_by_a_package,
    _hidden_by_a_package_beside_it,
    _hidden_in_a_folder_that_was_absent,
    _part_of_a_package_hidden_with_it,
    _hidden_by_a_link,
    _data_link_switched,
    *(_written(f"{name}.txt") for name in ("io", "data", "number", "path", "data_1", "missing")),
    _written("reading.ini", text="[DEFAULT]\nvalue = 2"),
    _written("flag"),
    _written("flags", "flag"),
    _written("held", "value.txt"),
    *(_written(name, "x.plugin") for name in ("listed", "scanned", "iterated", "globbed")),
]


@pytest.mark.parametrize("change", STALE, ids=lambda change: change.__name__.strip("_"))
def test_what_a_new_process_would_import_is_imported(
    pytester: pytest.Pytester, run: Runner, place: Place, change: Callable[[Place], None]
) -> None:
    time.sleep(0.05)  # files as young as the process that reads them count as doubtful
    run().assert_outcomes(passed=1)
    before = pids()
    assert len(before) == 1
    change(place)
    result = run()
    result.assert_outcomes(passed=1)
    assert (pytester.path / "seen").read_text().split() == ["1", "2"]
    assert not before & pids()
    result.stdout.fnmatch_lines(["forkd: *parent remade: * has changed"])


def test_what_makes_no_difference_leaves_the_parent(
    pytester: pytest.Pytester, run: Runner, place: Place, monkeypatch: Any
) -> None:
    """Bytecode, caches, logs, and whatever else comes into a directory on the path."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE")
    pytester.makeini("[pytest]\npythonpath = . helpers\nlog_file = run.log")
    place.write(pytester.path / "helpers" / "helping.py", "VALUE = 1\n")
    pytester.makepyfile(test_more="import helping\nimport other\ndef test_more(): pass")
    place.write(pytester.path / "helpers" / "other.py", "")
    run().assert_outcomes(passed=2)
    before = pids()
    assert len(before) == 1
    for number in range(3):
        for folder in (pytester.path, place.site, place.early, place.site / "heavy_parts"):
            place.write(folder / f"new_{number}.py", "")
            place.write(folder / f"heavy-{number}.txt", "")
            (folder / f"data_{number}").mkdir()
        place.write(pytester.path / "helpers" / "helping.py", f"VALUE = {number}\n")
        shutil.rmtree(place.site / "__pycache__", ignore_errors=True)
        result = run()
        result.assert_outcomes(passed=2)
        assert pids() == before, result.stdout.str()
