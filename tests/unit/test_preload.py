"""What is worth importing before workers are forked, read from the files that will import it."""

from __future__ import annotations

import sys
import tempfile
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_forkd.parent.third_party import import_modules, named_modules
from tests.unit import property_based

#: Modules that are installed, as far as these tests go.
INSTALLED = ["heavy_one", "heavy_two", "heavy_three"]


@contextmanager
def project() -> Iterator[Path]:
    """A folder for test files; the modules in its ``site-packages`` are installed."""
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder, "site-packages")
        for name in INSTALLED:
            package = site / name
            package.mkdir(parents=True)
            (package / "__init__.py").write_text("")
            (package / "sub.py").write_text("")
        (Path(folder) / "own.py").write_text("")
        before = list(sys.path)
        sys.path[:0] = [str(site), folder]
        try:
            yield Path(folder)
        finally:
            sys.path[:] = before


#: Statements, and what they import at the top level.
STATEMENTS = {
    "import heavy_one": ["heavy_one"],
    "import heavy_one.sub": ["heavy_one.sub"],
    "import heavy_two as two, heavy_three": ["heavy_two", "heavy_three"],
    "from heavy_two import sub": ["heavy_two"],
    "from heavy_three.sub import *": ["heavy_three.sub"],
    "import os, json.decoder": [],
    "import pytest, xdist, pytest_forkd, _pytest.config": [],
    "from . import sibling": [],
    "from .heavy_one import sub": [],
    "import own": [],
    "import not_installed_anywhere": [],
    "x = 'import heavy_one'": [],
    "# import heavy_one": [],
    "def function():\n    import heavy_one": [],
    "class Class:\n    import heavy_two": [],
}


@property_based
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["test_a.py", "b_test.py", "conftest.py", "sub/test_c.py"]),
            st.lists(st.sampled_from(sorted(STATEMENTS)), max_size=5),
        ),
        max_size=3,
        unique_by=lambda entry: entry[0],
    )
)
def test_modules_that_test_files_import_at_their_top_level_are_named_once(
    files: list[tuple[str, list[str]]],
) -> None:
    with project() as folder:
        expected: set[str] = set()
        for name, statements in files:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(statements) + "\n")
            expected.update(name for statement in statements for name in STATEMENTS[statement])
        for args, testpaths in (
            ([str(folder)], ["/nonexistent"]),
            (["-q", "--tb=short"], [str(folder)]),
            ([str(folder / name) + "::test_x" for name, _ in files], [str(folder)]),
        ):
            found = named_modules(args, testpaths)
            assert len(found) == len(set(found))
            assert set(found) == expected


@pytest.mark.parametrize(
    "source",
    [
        b"def broken(:\n",
        b"\xff\xfe\x00",
        b"# -*- coding: no-such-codec -*-\n",
        b"x = 1\0\n",
        b"x = " + b"-" * 100_000 + b"1\n",
        b"x = " + b"(" * 5_000 + b")" * 5_000 + b"\n",
        b"pattern = '\\d'\n",
    ],
    ids=["syntax", "encoding", "codec", "null byte", "too deep", "too nested", "warning"],
)
def test_a_file_that_cannot_be_read_is_left_for_pytest_to_report(
    source: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """Other files still count; nothing is written, nothing warned about."""
    with project() as folder:
        (folder / "test_a.py").write_bytes(source)
        (folder / "test_b.py").write_text("import heavy_one\n")
        (folder / "test_c.py").mkdir()
        (folder / "test_d.py").symlink_to("nowhere")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert named_modules([str(folder)], []) == ["heavy_one"]
    assert caught == []
    assert capfd.readouterr() == ("", "")


def test_folders_that_hold_no_tests_of_the_project_are_passed_over() -> None:
    with project() as folder:
        for name in (".hidden", "node_modules", "build", "environment", "__pycache__"):
            (folder / name).mkdir()
            (folder / name / "test_it.py").write_text("import heavy_one\n")
        (folder / "environment" / "pyvenv.cfg").write_text("")
        (folder / "module.py").write_text("import heavy_two\n")
        assert named_modules([str(folder)], []) == []


def test_importing_takes_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails to import, skips or exits is left for the suite to fail on, without a trace."""
    for name, source in {
        "failing_module": "1/0",
        "exiting_module": "raise SystemExit(1)",
        "skipping_module": "import pytest; pytest.skip('no', allow_module_level=True)",
        "warning_module": "import warnings; warnings.warn('old')",
        "fine_module": "",
    }.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    names = sorted(path.stem for path in tmp_path.glob("*.py"))
    try:
        import_modules([*names, "module_that_is_missing", "fine_module"])
        loaded = {name for name in names if name in sys.modules}
    finally:
        for name in names:
            sys.modules.pop(name, None)
    assert loaded == {"fine_module", "warning_module"}
