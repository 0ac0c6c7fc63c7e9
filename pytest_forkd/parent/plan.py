"""What a parent is to import: written by a controller, read by the parent."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Plan", "Rewriting", "own_packages"]

#: Where a project keeps its own packages, below its root directory.
_SOURCE_FOLDERS = ("", "src", "lib", "python")


@dataclass(frozen=True)
class Rewriting:
    """Which modules pytest rewrites the assertions of while they are imported.

    :ivar names: modules and packages that are registered for rewriting, such as plugins.
    :ivar python_files: the ini value; it tells which files are test modules.
    :ivar pass_hook: the ini value ``enable_assertion_pass_hook``; it changes the generated code.
    """

    names: list[str] = field(default_factory=list)
    python_files: list[str] = field(default_factory=list)
    pass_hook: bool = False

    @classmethod
    def from_json(cls, stored: dict[str, Any] | None) -> Rewriting | None:
        """The inverse of :func:`dataclasses.asdict`; ``None`` for ``None``."""
        return None if stored is None else cls(**stored)

    @classmethod
    def of(cls, config: Any) -> Rewriting | None:
        """What a pytest configuration says so far.

        :returns: ``None`` if nothing is rewritten, as with ``--assert=plain``.
        """
        names = getattr(config.pluginmanager.rewrite_hook, "_must_rewrite", None)
        if names is None:
            return None
        return cls(
            sorted(names),
            [str(pattern) for pattern in config.getini("python_files")],
            bool(config.getini("enable_assertion_pass_hook")),
        )


@dataclass
class Plan:
    """What a parent is to import.

    :ivar preload: modules that the user has asked for.
    :ivar path: where to look for modules first.
    :ivar cwd: the directory that pytest was started in.
    :ivar project: the suite's root directory and ini file; parents are kept for one project.
    :ivar learnt: modules that the suite's collection imported last time.
    :ivar scan: paths whose test files and conftests are searched for more imports; ``None`` if
        ``learnt`` is complete.
    :ivar exclude: top-level packages that are the project's own, wherever they are installed.
    :ivar skip: top-level packages that must not be imported early, with the reason; ``*`` stands
        for all.
    :ivar rewriting: which modules have their assertions rewritten; ``None`` for none.
    """

    preload: list[str] = field(default_factory=list)
    path: list[str] = field(default_factory=list)
    cwd: str = "/"
    project: str = ""
    learnt: list[str] = field(default_factory=list)
    scan: list[str] | None = None
    exclude: list[str] = field(default_factory=list)
    skip: dict[str, str] = field(default_factory=dict)
    rewriting: Rewriting | None = None

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Plan:
        """The inverse of :meth:`to_json`.

        :raises TypeError: if the fields are not those of a plan.
        """
        return cls(**{**stored, "rewriting": Rewriting.from_json(stored.get("rewriting"))})

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-serializable fields."""
        return asdict(self)

    def write(self, fd: int) -> None:
        """Write the plan to an open file.

        :raises OSError: if writing fails.
        """
        data = json.dumps(self.to_json()).encode("ascii")
        while data:
            data = data[os.write(fd, data) :]

    @classmethod
    def read(cls, fd: int) -> Plan:
        """Read the plan from an open file, without moving its position."""
        return cls.from_json(json.loads(os.pread(fd, os.fstat(fd).st_size, 0)))


def own_packages(root: Path, measured: Iterable[object] = ()) -> set[str]:
    """Top-level names that may be the project's own modules, even where these are installed.

    They are never imported early: their import is part of what is tested and measured.

    :param measured: modules and paths that coverage is measured for, as far as known.
    """
    names = set()
    for folder in _SOURCE_FOLDERS:
        with contextlib.suppress(OSError), os.scandir(root / folder) as entries:
            for entry in entries:
                name = entry.name.partition(".")[0]
                if name.isidentifier():
                    names.add(name)
    for source in measured:
        if isinstance(source, str):
            names.add(source.partition(".")[0])
    return names
