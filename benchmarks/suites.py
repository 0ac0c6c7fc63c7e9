"""The suites that the runners run, each written to a folder by code, the same bytes every time.

In: a suite's name, a runner's name, and whether the small variant is wanted. Out: a folder with
a `pytest.ini` of its own (so that no configuration above it counts), the requirements that the
suite's tests import, and how many tests must pass. Each runner has a copy of its own, so that
what one keeps there (durations, last failures, bytecode) is never another's.
"""

from __future__ import annotations

import configparser
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imports import without_imports_of
from layout import EXAMPLES, WORK

EMPTY_INI = "[pytest]\n"
SCIENCE = ("numpy", "pandas", "scikit-learn")
SCIENCE_MODULES = frozenset({"numpy", "pandas", "sklearn"})
CACHES = ("__pycache__", ".pytest_cache", ".rstest_cache", ".hypothesis")

Files = dict[str, bytes]


class SuiteUnavailable(Exception):
    """The suite's source is not in this checkout; the message says what is missing."""


@dataclass(frozen=True)
class Suite:
    """A suite on disk, in one runner's copy.

    name: as in `--suite`. folder: where its tests are; runners start there.
    expected: how many tests must pass, or None where only a plain run can tell.
    limit_s: seconds after which one run is given up.
    memory: whether a separate run samples the memory of this suite.
    best_s: from a worker count to the wall seconds that no runner can do better than, where the
    tests do nothing but sleep for known times.
    """

    name: str
    folder: Path
    expected: int | None
    limit_s: float
    memory: bool = False
    best_s: Callable[[int], float] | None = None


@dataclass(frozen=True)
class Recipe:
    """How to make a suite: a sentence for people, and a function from `quick` to its parts.

    repeat_limit: at most so many timed runs (None: as many as asked for).
    part_of: the suite in whose rounds it runs, for one that is only measured beside another.
    plain: of a part, that plain pytest alone runs it; else the parallel runners do.
    """

    summary: str
    files: Callable[[bool], Files]
    expected: Callable[[bool], int | None]
    limit_s: float
    repeat_limit: int | None = None
    memory: bool = False
    best_s: Callable[[bool, int], float] | None = None
    part_of: str = ""
    plain: bool = False


def build(name: str, runner: str, *, quick: bool = False) -> Suite:
    """Write a runner's copy of the suite `name`, unless it is there already, and describe it."""
    recipe = RECIPES[name]
    folder = WORK / "suites" / runner / (f"{name}-quick" if quick else name)
    write_files(folder, recipe.files(quick))
    best_s = recipe.best_s
    return Suite(
        name=name,
        folder=folder,
        expected=recipe.expected(quick),
        limit_s=recipe.limit_s,
        memory=recipe.memory,
        best_s=None if best_s is None else lambda workers: best_s(quick, workers),
    )


def whole() -> list[str]:
    """Return the names of the suites that can be asked for."""
    return [name for name, recipe in RECIPES.items() if not recipe.part_of]


def with_parts(name: str) -> list[str]:
    """Return the suite's name and those of the parts that run in its rounds."""
    return [name, *(part for part, recipe in RECIPES.items() if recipe.part_of == name)]


def requirements() -> tuple[str, ...]:
    """Return what every runner's environment needs so that it can run any of the suites."""
    source = EXAMPLES / "ml_suite" / "requirements.txt"
    text = source.read_text() if source.is_file() else ""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    found = [line for line in lines if line and "forkd" not in line]
    found += [name for name in SCIENCE if not any(line.startswith(name) for line in found)]
    return tuple(sorted(found))


def clear_caches(folder: Path) -> None:
    """Remove what earlier runs left in a suite's folder: bytecode, last results, durations."""
    for name in CACHES:
        for path in folder.rglob(name):
            shutil.rmtree(path, ignore_errors=True)


def write_files(folder: Path, files: Files) -> None:
    """Make `folder` hold exactly `files`; a folder that does already is left untouched."""
    if folder.is_dir():
        there = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and not set(path.relative_to(folder).parts) & set(CACHES)
        }
        if there == files:
            return
        shutil.rmtree(folder)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _encode(**texts: str) -> Files:
    files = {f"{name}.py": text.encode() for name, text in texts.items()}
    files["pytest.ini"] = EMPTY_INI.encode()
    return files


def _ml(quick: bool) -> Files:
    del quick  # it is small enough
    source = EXAMPLES / "ml_suite"
    if not source.is_dir():
        raise SuiteUnavailable("examples/ml_suite is not in this checkout")
    files = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for path in sorted(source.rglob("*"))
        if path.is_file() and not set(path.relative_to(source).parts) & set(CACHES)
    }
    files["pytest.ini"] = without_forkd(files.get("pytest.ini", b"").decode()).encode()
    return files


def _ml_floor(quick: bool) -> Files:
    files = _ml(quick)
    sources = {name: text.decode() for name, text in files.items() if name.endswith(".py")}
    tests = {name for name in sources if Path(name).name.startswith("test_")}
    return without(files, tests - without_imports_of(SCIENCE_MODULES, sources))


def without(files: Files, names: set[str]) -> Files:
    """Return `files` less those named."""
    return {name: content for name, content in files.items() if name not in names}


def without_forkd(ini: str) -> str:
    """Return a `pytest.ini` less the lines and the default arguments that are forkd's."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(ini or EMPTY_INI)
    if not parser.has_section("pytest"):
        parser.add_section("pytest")
    section = parser["pytest"]
    for key in [key for key in section if key.startswith("forkd")]:
        del section[key]
    if "addopts" in section:
        kept: list[str] = []
        words = section["addopts"].replace("-p forkd", "-pforkd").split()
        skip_value = False
        for word in words:
            if skip_value and not word.startswith("-"):
                skip_value = False
                continue
            skip_value = False
            if word == "-pforkd" or word.startswith("--forkd"):
                skip_value = word.startswith("--forkd") and "=" not in word
                continue
            kept.append(word)
        section["addopts"] = " ".join(kept)
        if not kept:
            del section["addopts"]
    text = io.StringIO()
    parser.write(text)
    return text.getvalue().rstrip() + "\n"


def _tiny_files(quick: bool) -> int:
    return 10 if quick else 100


def _tiny(quick: bool) -> Files:
    tests = "".join(f"def test_{i:03}():\n    assert {i} + 1 == {i + 1}\n\n\n" for i in range(100))
    return _encode(**{f"test_tiny_{i:03}": tests for i in range(_tiny_files(quick))})


def _tiny_one(quick: bool) -> Files:
    del quick
    return _encode(test_tiny_000="def test_000():\n    assert 0 + 1 == 1\n")


def _one_long_short_tests(quick: bool) -> int:
    return 40 if quick else 200


def _one_long_long_s(quick: bool) -> float:
    return 1.0 if quick else 5.0


def _one_long_best_s(quick: bool, workers: int) -> float:
    long_s = _one_long_long_s(quick)
    return max(long_s, (0.05 * _one_long_short_tests(quick) + long_s) / workers)


def _one_long(quick: bool) -> Files:
    count = _one_long_short_tests(quick)
    long_s = _one_long_long_s(quick)
    text = "import time\n\n\n"
    text += "".join(f"def test_short_{i:03}():\n    time.sleep(0.05)\n\n\n" for i in range(count))
    text += f"def test_long():\n    time.sleep({long_s})\n"
    return _encode(test_one_long=text)


def _module_fixture_modules(quick: bool) -> int:
    return 8 if quick else 40


def _module_fixture_best_s(quick: bool, workers: int) -> float:
    return _module_fixture_modules(quick) * (0.3 + 10 * 0.01) / workers


MODULE_FIXTURE = """\
import time

import pytest


@pytest.fixture(scope="module")
def costly():
    time.sleep(0.3)
    return 42


@pytest.mark.parametrize("n", range(10))
def test_uses_it(costly, n):
    time.sleep(0.01)
    assert costly == 42
"""


def _module_fixture(quick: bool) -> Files:
    modules = range(_module_fixture_modules(quick))
    return _encode(**{f"test_module_{i:02}": MODULE_FIXTURE for i in modules})


MEMORY = """\
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression


@pytest.mark.parametrize("n", range(8))
def test_holds_the_libraries(n):
    frame = pd.DataFrame({{"x": np.arange(100.0), "y": np.arange(100.0) * n}})
    model = LinearRegression().fit(frame[["x"]], frame["y"])
    time.sleep({sleep_s})
    assert round(float(model.coef_[0]), 6) == n
"""


def _memory(quick: bool) -> Files:
    return _encode(test_memory=MEMORY.format(sleep_s=1.5 if quick else 2.5))


RECIPES: dict[str, Recipe] = {
    "ml": Recipe(
        "a copy of examples/ml_suite: numpy, pandas and scikit-learn are imported, tests are short",
        _ml,
        lambda quick: None,
        limit_s=120,
        memory=True,
    ),
    "ml_floor": Recipe(
        "the test files of ml that need none of its libraries: the floor, under plain pytest",
        _ml_floor,
        lambda quick: None,
        limit_s=120,
        part_of="ml",
        plain=True,
    ),
    "tiny": Recipe(
        "10,000 trivial tests in 100 files",
        _tiny,
        lambda quick: 100 * _tiny_files(quick),
        limit_s=240,
        memory=True,
    ),
    "tiny_one": Recipe(
        "tiny cut to its first test: what start-up takes",
        _tiny_one,
        lambda quick: 1,
        limit_s=120,
        part_of="tiny",
    ),
    "one_long": Recipe(
        "200 tests of 50 ms and, placed last, one of 5 s",
        _one_long,
        lambda quick: 1 + _one_long_short_tests(quick),
        limit_s=120,
        best_s=_one_long_best_s,
    ),
    "module_fixture": Recipe(
        "40 modules, each with a module fixture of 0.3 s and ten tests of 10 ms",
        _module_fixture,
        lambda quick: 10 * _module_fixture_modules(quick),
        limit_s=120,
        best_s=_module_fixture_best_s,
    ),
    "memory": Recipe(
        "8 tests that hold numpy, pandas and scikit-learn for 2.5 s each",
        _memory,
        lambda quick: 8,
        limit_s=180,
        repeat_limit=3,
        memory=True,
    ),
}
