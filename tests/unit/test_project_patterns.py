"""Patterns of files are relative to the suite's root directory, wherever the repository begins."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pytest_forkd.machines.working_tree import ProjectSource, SyncSettings


def test_patterns_are_relative_to_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for name in ("app/data/big", "app/data/small", "app/cache/v", "data/big", "app/x.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / ".gitignore").write_text("cache\n*.so\n")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    settings = SyncSettings(
        folder=str(tmp_path / "app"), exclude=("data/big",), include=("cache/v", "*.so")
    )
    project = ProjectSource(settings)
    project.start()
    tree = project._tree.result(30)
    assert tree.root == str(tmp_path)
    assert sorted(tree.manifest) == [
        ".gitignore",
        "app/cache/v",
        "app/data/small",
        "app/x.so",
        "data/big",
    ]
