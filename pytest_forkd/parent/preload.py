"""Which modules are worth importing before workers are forked."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from _pytest.outcomes import OutcomeException

__all__ = ["import_modules", "named_modules", "third_party_modules"]

#: Files looked at for imports; a larger suite repeats itself.
_MAX_FILES = 2000


def third_party_modules(before: Iterable[str], config: Any) -> list[str]:
    """Modules of installed distributions that were imported since ``before``.

    Distributions that hold pytest plugins are left out: pytest wants to be the one that imports
    them, to rewrite their assertions, and warns otherwise.

    :param before: names of modules that were loaded earlier.
    :returns: names, in the order of their import.
    """
    known = set(before)
    plugins = {
        getattr(plugin, "__name__", type(plugin).__module__).partition(".")[0]
        for plugin in config.pluginmanager.get_plugins()
    }
    rewritten = getattr(config.pluginmanager.rewrite_hook, "_must_rewrite", ())
    plugins.update(name.partition(".")[0] for name in rewritten)
    roots = _third_party_roots()
    found = []
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        path = getattr(module, "__file__", None)
        spec = getattr(module, "__spec__", None)
        if (
            name not in known
            and top not in plugins
            and path is not None
            and spec is not None
            and spec.name == name
            and path.startswith(roots)
            and not top.startswith("_pytest")
        ):
            found.append(name)
    return found


def _third_party_roots() -> tuple[str, ...]:
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    paths.update(entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages")))
    return tuple(os.path.join(path, "") for path in paths if path)


def named_modules(args: list[str], testpaths: list[str]) -> list[str]:
    """Third-party modules that test files and conftests import at their top level.

    :param args: pytest's command line; whatever in it is no path is passed over.
    :param testpaths: where to look if there is no path among ``args``.
    :returns: names of modules, dotted as they are imported.
    """
    roots = [path for arg in args if os.path.exists(path := arg.partition("::")[0])]
    names: dict[str, None] = {}
    for path in _python_files(roots or testpaths or ["."]):
        for name in _imports(path):
            names.setdefault(name)
    return [name for name in names if _is_third_party(name.partition(".")[0])]


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


def _imports(path: str) -> Iterator[str]:
    """The modules that a file imports at its top level; none if it cannot be parsed."""
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
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
        return origin.startswith(_third_party_roots())
    return False


def import_modules(names: Iterable[str]) -> None:
    """Import modules; one that fails is left for the suite to fail on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            if name not in sys.modules:
                # Skipped and Exit of pytest are BaseExceptions; a module may raise them, too.
                with contextlib.suppress(Exception, SystemExit, OutcomeException):
                    importlib.import_module(name)
