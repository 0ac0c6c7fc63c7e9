"""Which changes of a project make a snapshot of it stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_forkd.sync.dependencies import partial_files, stale
from pytest_forkd.sync.difference import difference
from pytest_forkd.sync.scan import scan
from pytest_forkd.sync.tree import manifest, texts

PYPROJECT = """
[project]
name = "x"
version = "1"
dependencies = ["numpy"]
[dependency-groups]
test = ["pytest"]
[tool.uv]
dev-dependencies = ["ruff"]
"""
SETUP = """
from setuptools import setup
setup(name="x", version="1", install_requires=["numpy"])
"""


def reason(
    tmp_path: Path,
    before: dict[str, str],
    after: dict[str, str | None],
    folders: tuple[str, ...] = ("",),
) -> str | None:
    """What is said when a project changes from ``before`` by ``after``."""
    host, guest = tmp_path / "host", tmp_path / "guest"
    for root, files in ((guest, before), (host, before | after)):
        root.mkdir()
        for name, text in files.items():
            if text is not None:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)
    what = difference(scan(str(host)), manifest(str(guest)))
    return stale(what, texts(str(guest), partial_files(folders)), folders)


@pytest.mark.parametrize(
    "name",
    [
        ".python-version",
        "Pipfile.lock",
        "conda-lock.yml",
        "pdm.lock",
        "pixi.lock",
        "poetry.lock",
        "requirements-dev.txt",
        "requirements.txt",
        "requirements/ci.txt",
        "uv.lock",
    ],
)
def test_files_that_say_what_is_installed(tmp_path: Path, name: str) -> None:
    for number, (before, after, said) in enumerate(
        [
            ("1", "2", "has changed"),
            ("1", None, "is gone"),
            (None, "2", "is new"),
            ("1", "1", None),
        ]
    ):
        (tmp_path / str(number)).mkdir()
        files = {"test_a.py": "1"} | ({} if before is None else {name: before})
        found = reason(tmp_path / str(number), files, {name: after, "test_a.py": "2"})
        assert found == (None if said is None else f"{name} {said}")


@pytest.mark.parametrize(
    ("name", "text", "change", "is_stale"),
    [
        ("pyproject.toml", PYPROJECT, ('version = "1"', 'version = "2"'), False),
        ("pyproject.toml", PYPROJECT, ('name = "x"', "name = "), True),
        ("pyproject.toml", PYPROJECT, ('"numpy"', '"numpy>2"'), True),
        ("pyproject.toml", PYPROJECT, ('"pytest"', '"pytest>8"'), True),
        ("pyproject.toml", PYPROJECT, ('"ruff"', '"ruff", "mypy"'), True),
        ("pyproject.toml", PYPROJECT, ("[tool.uv]", "[tool.ruff]\nx = 1\n[tool.uv]"), False),
        ("setup.cfg", "[options]\ninstall_requires = a\n", ("= a", "= b"), True),
        ("setup.cfg", "[options]\ninstall_requires = a\n", ("[o", "[x]\ny=1\n[o"), False),
        ("setup.cfg", "[options.extras_require]\nx = a\n", ("= a", "= b"), True),
        ("setup.py", SETUP, ('version="1"', 'version="2"'), False),
        ("setup.py", SETUP, ('"numpy"', '"pandas"'), True),
        ("setup.py", SETUP.replace('["numpy"]', "NEEDED"), ('"1"', '"2"'), True),
        ("setup.py", SETUP, ("setup(name", "setup(**more, name"), True),
        ("setup.py", SETUP, ("setup(name", "setup((name"), True),
        ("setup.py", SETUP, ("setup(name", "(" * 100_000 + "setup(name"), True),
    ],
)
def test_files_of_which_a_part_counts(
    tmp_path: Path, name: str, text: str, change: tuple[str, str], is_stale: bool
) -> None:
    found = reason(tmp_path, {name: text}, {name: text.replace(*change)})
    assert found == (f"the dependencies in {name} have changed" if is_stale else None)


def test_several_reasons_are_all_given(tmp_path: Path) -> None:
    changed: dict[str, str | None] = {
        "pyproject.toml": PYPROJECT.replace("numpy", "scipy"),
        "uv.lock": "2",
        "requirements.txt": "scipy",
    }
    found = reason(tmp_path, {"pyproject.toml": PYPROJECT, "uv.lock": "1"}, changed)
    assert found == (
        "the dependencies in pyproject.toml have changed, requirements.txt is new "
        "and uv.lock has changed"
    )


def test_fixtures_of_tests_do_not_count_unless_asked_for(tmp_path: Path) -> None:
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
    files = {"tests/data/requirements.txt": "a", "app/uv.lock": "1", "app/setup.cfg": "[a]\nb=c\n"}
    after: dict[str, str | None] = {name: text + "\n#" for name, text in files.items()}
    assert reason(tmp_path / "1", files, after) is None
    assert reason(tmp_path / "2", files, after, ("", "app")) == "app/uv.lock has changed"


def test_a_snapshot_without_the_project_is_not_stale(tmp_path: Path) -> None:
    assert reason(tmp_path, {}, {"uv.lock": "1", "pyproject.toml": PYPROJECT}) is None
