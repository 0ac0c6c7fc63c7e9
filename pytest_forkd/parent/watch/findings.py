"""Reasons why a suite would behave differently if its workers shared one collection."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from types import CodeType, FrameType, ModuleType
from typing import Any

from pytest_forkd.runtime.site_directories import site_directories

__all__ = [
    "Finding",
    "caller_outside",
    "is_installed",
    "is_stdlib",
    "place_of",
    "project_files",
    "project_modules",
]


@dataclass(frozen=True)
class Finding:
    """One reason: what was seen, and where.

    :ivar what: a clause that completes "workers cannot share one collection: ...".
    :ivar path: the file that caused it, if known.
    :ivar lineno: the line in it, 1-based, or 0.
    """

    what: str
    path: str | None = None
    lineno: int = 0

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON-serializable fields."""
        return {"what": self.what, "path": self.path, "lineno": self.lineno}


def _installed_roots() -> tuple[str, ...]:
    roots = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *site_directories()}
    return tuple(os.path.join(os.path.realpath(root), "") for root in roots if root)


def is_installed(path: str | None) -> bool:
    """Whether a file belongs to the interpreter or to an installed distribution.

    Everything else is the project's own: conftests, test modules, plugins kept beside them, and
    packages in editable installs.
    """
    if not path:
        return True
    return os.path.realpath(path).startswith(_installed_roots())


def is_stdlib(path: str) -> bool:
    """Whether a file belongs to the standard library."""
    if path.startswith("<frozen "):
        return True
    root = os.path.join(sysconfig.get_path("stdlib"), "")
    return path.startswith(root) and not path.startswith(
        (os.path.join(root, "site-packages"), os.path.join(root, "dist-packages"))
    )


def project_files() -> list[str]:
    """The files of all modules that belong neither to the interpreter nor to a distribution."""
    roots = _installed_roots()  # once: they are looked up in the file system
    paths = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return sorted({path for path in paths if path and not os.path.realpath(path).startswith(roots)})


def project_modules(names: Iterable[str]) -> list[ModuleType]:
    """Those of the loaded modules that belong neither to the interpreter nor to a distribution."""
    roots = _installed_roots()
    found = []
    for name in names:
        module = sys.modules.get(name)
        path = getattr(module, "__file__", None)
        # Decide by the path alone where possible; realpath() asks the file system.
        if module is None or type(path) is not str or path.startswith(roots):
            continue
        if not os.path.realpath(path).startswith(roots):
            found.append(module)
    return found


def place_of(code: CodeType) -> tuple[str, int]:
    """The file and line where a function is defined."""
    return code.co_filename, code.co_firstlineno


def caller_outside(frame: FrameType | None, modules: frozenset[str]) -> FrameType | None:
    """The nearest caller that is neither in ``modules`` (their names) nor in the standard library.

    For example, ``copy`` reads every value of a mapping; the finding is about the code calling it.
    """
    while frame is not None and (
        frame.f_globals.get("__name__") in modules or is_stdlib(frame.f_code.co_filename)
    ):
        frame = frame.f_back
    return frame
