"""Decides whether a difference makes a snapshot stale, since it changes dependencies."""

from __future__ import annotations

import ast
import configparser
import fnmatch
import glob
import importlib
import json
import os
import sys
from collections.abc import Collection, Mapping
from typing import Any

from pytest_forkd.sync.difference import Difference
from pytest_forkd.sync.tree import entry_of, texts

# pytest needs tomli where Python has no tomllib.
tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

__all__ = ["dependency_files", "partial_files", "stale"]

#: Files that describe what is installed; any change to them counts.
_WHOLE = (
    ".python-version",
    "Pipfile",
    "Pipfile.lock",
    "conda-lock.yml",
    "constraints*.txt",
    "environment.yaml",
    "environment.yml",
    "pdm.lock",
    "pixi.lock",
    "pixi.toml",
    "poetry.lock",
    "pylock.toml",
    "pylock.*.toml",
    "requirements*.txt",
    "requirements/*.txt",
    "uv.lock",
)
#: Tables of pyproject.toml that describe what is installed.
_TABLES = (
    ("build-system", "build-backend"),
    ("dependency-groups",),
    ("project", "dependencies"),
    ("project", "entry-points"),
    ("project", "optional-dependencies"),
    ("project", "requires-python"),
    ("tool", "pdm", "dev-dependencies"),
    ("tool", "pixi"),
    ("tool", "poetry", "dependencies"),
    ("tool", "poetry", "dev-dependencies"),
    ("tool", "poetry", "extras"),
    ("tool", "poetry", "group"),
    ("tool", "poetry", "plugins"),
    ("tool", "uv"),
)
#: Options of setup.cfg and arguments of setup().
_OPTIONS = ("install_requires", "python_requires", "setup_requires", "tests_require")
_SECTIONS = ("options.extras_require", "options.entry_points")
_ARGUMENTS = frozenset({*_OPTIONS, "extras_require", "entry_points"})


def partial_files(folders: Collection[str] = ("",)) -> list[str]:
    """Files of which only a part counts; the guest's text of them is needed (``tree.texts``)."""
    return [_join(folder, name) for folder in folders for name in _PARTS]


def stale(
    what: Difference, before: Mapping[str, str], folders: Collection[str] = ("",)
) -> str | None:
    """Why a snapshot no longer fits, in words; ``None`` if it does.

    :param what: what has changed since it was made.
    :param before: the guest's text of :func:`partial_files`; without it, any change to a file
        counts.
    :param folders: where to look for such files, relative to the tree's root.
    """
    if not what.have:
        return None  # the snapshot had no project
    reasons = {}
    for path in sorted({*what.write, *what.delete}):
        for folder in folders:
            start = _join(folder, "")
            reason = path.startswith(start) and _reason(what, before, path, path[len(start) :])
            if reason:
                reasons[path] = reason
    if not reasons:
        return None
    *most, last = reasons.values()
    return f"{', '.join(most)} and {last}" if most else last


def _reason(what: Difference, before: Mapping[str, str], path: str, inner: str) -> str | None:
    if inner in _PARTS:
        now = texts(what.tree.root, [path]).get(path)
        if path in before and now is not None:
            read = _PARTS[inner]
            try:
                if read(before[path]) == read(now):
                    return None
            except (ValueError, SyntaxError, RecursionError, MemoryError, configparser.Error):
                pass  # it cannot be parsed, so any change counts
            return f"the dependencies in {path} have changed"
    elif not any(
        fnmatch.fnmatchcase(inner, pattern) and inner.count("/") == pattern.count("/")
        for pattern in _WHOLE
    ):
        return None
    if path not in what.have:
        return f"{path} is new"
    return f"{path} is gone" if path not in what.tree.manifest else f"{path} has changed"


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _pyproject(text: str) -> str:
    document = tomllib.loads(text)
    found = {}
    for table in _TABLES:
        value: Any = document
        for key in table:
            value = value.get(key) if isinstance(value, dict) else None
        found[".".join(table)] = value
    return json.dumps(found, sort_keys=True, default=str)


def _setup_cfg(text: str) -> str:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    found = {name: parser.get("options", name, fallback=None) for name in _OPTIONS}
    sections = {name: dict(parser[name]) for name in _SECTIONS if name in parser}
    return json.dumps([found, sections], sort_keys=True)


def _setup_py(text: str) -> str:
    """The arguments of setup() that describe what is installed; the whole file if computed."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.keyword) and node.arg in _ARGUMENTS:
            try:
                found[node.arg] = repr(ast.literal_eval(node.value))
            except ValueError:
                return text
        elif isinstance(node, ast.keyword) and node.arg is None:
            return text  # setup(**computed)
    return json.dumps(found, sort_keys=True)


_PARTS = {"pyproject.toml": _pyproject, "setup.cfg": _setup_cfg, "setup.py": _setup_py}


def dependency_files(root: str) -> dict[str, str]:
    """The content of a project's files that would make a snapshot stale if it changed, by path.

    :returns: for a file of which any change counts, its hash; for the others, the part that counts.
    """
    found = {}
    for pattern in _WHOLE:
        for path in glob.glob(pattern, root_dir=root):
            entry = entry_of(os.fsencode(os.path.join(root, path)))
            if entry is not None and entry.kind == "file":
                found[path] = entry.digest
    for path, text in texts(root, _PARTS).items():
        try:
            found[path] = _PARTS[path](text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, configparser.Error):
            found[path] = text
    return found
