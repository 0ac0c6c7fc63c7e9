"""Which modules are worth importing before workers are forked."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Container, Iterable, Iterator
from typing import Any

from pytest_forkd.compat.pytest import OutcomeException
from pytest_forkd.runtime.site_directories import site_prefixes

__all__ = [
    "import_modules",
    "installed_modules",
    "last_module",
    "modules_since",
    "named_modules",
    "third_party_modules",
    "third_party_packages",
]

#: How many files are searched for imports; more rarely import anything new.
_MAX_FILES = 2000


#: A line that starts with an import. It may be inside a string, so it only tells which files to
#: parse.
_IMPORT_LINE = re.compile(rb"^(?:import|from)[ \t]+([^\n#;(]+)", re.MULTILINE)


def last_module() -> str:
    """The name of the module that was imported last; for :func:`modules_since`."""
    return next(reversed(sys.modules))


def modules_since(last: str) -> list[str]:
    """The names of the modules that were imported after ``last``, in that order.

    Other modules are not touched: in a fork, that would copy the memory pages that they are in.
    """
    names: list[str] = []
    for name in reversed(sys.modules):
        if name == last:
            break
        names.append(name)
    return names[::-1]


def third_party_modules(
    names: Iterable[str], config: Any, exclude: Container[str] = ()
) -> list[str]:
    """Those of the loaded modules ``names`` that belong to installed distributions.

    Plugins are left out: what they read when pytest imports them may depend on the process.

    :param exclude: top-level packages that are the project's own, wherever they are installed.
    """
    plugins = {
        getattr(plugin, "__name__", type(plugin).__module__).partition(".")[0]
        for plugin in config.pluginmanager.get_plugins()
    }
    return [
        name
        for name in installed_modules(names)
        if (top := name.partition(".")[0]) not in plugins and top not in exclude
    ]


def installed_modules(names: Iterable[str]) -> list[str]:
    """Those of the loaded modules ``names`` that belong to installed distributions."""
    roots = site_prefixes()
    found = []
    for name in names:
        module = sys.modules.get(name)
        path = getattr(module, "__file__", None)
        spec = getattr(module, "__spec__", None)
        if (
            path is not None
            and spec is not None
            and spec.name == name
            and path.startswith(roots)
            and not name.startswith("_pytest")
        ):
            found.append(name)
    return found


def third_party_packages() -> list[str]:
    """The top-level third-party packages that are loaded."""
    roots = site_prefixes()
    return sorted(
        name
        for name, module in list(sys.modules.items())
        if "." not in name and (getattr(module, "__file__", None) or "").startswith(roots)
    )


def named_modules(args: list[str], testpaths: list[str], exclude: Container[str] = ()) -> list[str]:
    """Third-party modules that test files and conftests import at their top level.

    :param args: pytest's command line; anything in it that is not a path is ignored.
    :param testpaths: where to look if there is no path among ``args``.
    :param exclude: top-level packages that are the project's own.
    :returns: names of modules, dotted as they are imported.
    """
    roots = [path for arg in args if os.path.exists(path := arg.partition("::")[0])]
    wanted: dict[str, bool] = {}  # top-level package -> whether it is third-party
    names: dict[str, None] = {}
    for path in _python_files(roots or testpaths or ["."]):
        source = _read(path)
        # A list, not a generator: _may_name() has to see every line, to fill ``wanted``.
        found = [_may_name(line, wanted, exclude) for line in _IMPORT_LINE.findall(source)]
        if not any(found):
            continue  # parsing a file costs much more than reading it
        for name in _imports(source):
            if wanted.get(name.partition(".")[0]):
                names.setdefault(name)
    return list(names)


def _may_name(line: bytes, wanted: dict[str, bool], exclude: Container[str]) -> bool:
    """Whether an import line may name a third-party package; records the answers in ``wanted``."""
    found = False
    for part in line.decode("utf-8", "replace").partition(" import ")[0].split(","):
        top = part.strip().partition(" ")[0].partition(".")[0]
        if top not in wanted:
            wanted[top] = bool(top) and top not in exclude and _is_third_party(top)
        found = found or wanted[top]
    return found


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _python_files(roots: list[str]) -> Iterator[str]:
    count = 0
    for root in roots:
        if os.path.isfile(root):
            yield root
            continue
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith((".", "__pycache__"))
                and name not in ("node_modules", "build", "dist", "venv")
                and not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
            )
            for name in sorted(files):
                if name.endswith(".py") and ("test" in name or name == "conftest.py"):
                    yield os.path.join(folder, name)
                    count += 1
                    if count >= _MAX_FILES:
                        return


def _imports(source: bytes) -> Iterator[str]:
    """The modules that a file imports at its top level; none if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def _is_third_party(top: str) -> bool:
    if top in sys.stdlib_module_names or top in ("pytest", "_pytest", "xdist", "pytest_forkd"):
        return False
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(top)
        origin = spec.origin if spec is not None else None
        if origin is None or top.startswith("pytest"):
            return False
        return origin.startswith(site_prefixes())
    return False


def import_modules(names: Iterable[str], skip: Container[str] = ()) -> None:
    """Import modules; if one fails, the suite will report it.

    :param skip: top-level packages to leave out; ``*`` stands for all.
    """
    if "*" in skip:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            if name not in sys.modules and name.partition(".")[0] not in skip:
                # A module may also raise pytest's Skipped or Exit, which are BaseExceptions.
                with contextlib.suppress(Exception, SystemExit, OutcomeException):
                    importlib.import_module(name)
