"""Imports ahead of pytest that are what pytest's would be: what it rewrites is rewritten.

pytest rewrites the assertions of test modules and of distributions that hold plugins (documented at
"Assertion Rewriting"), and warns of those that were imported without that. So early imports go
through pytest's own import hook, told what the suite's pytest tells it.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import BuiltinImporter
from types import SimpleNamespace
from typing import Any

import pytest
from _pytest.assertion import AssertionState
from _pytest.assertion.rewrite import AssertionRewriter, AssertionRewritingHook, assertstate_key
from pluggy._tracing import TagTracer

from pytest_forkd.parent.plan import Rewriting

__all__ = ["plainly_imported", "rewriting", "without_rewriting"]

_NO_REWRITING = "PYTEST_DONT_REWRITE"


class _HookConfig:
    """What the import hook asks of a ``pytest.Config``."""

    def __init__(self, plan: Rewriting) -> None:
        self._ini = {
            "python_files": plan.python_files,
            "enable_assertion_pass_hook": plan.pass_hook,
        }
        self.trace = SimpleNamespace(root=TagTracer())
        self.stash = pytest.Stash()
        self.stash[assertstate_key] = AssertionState(self, "rewrite")  # type: ignore[arg-type]

    def getini(self, name: str) -> Any:
        return self._ini[name]

    def issue_config_time_warning(self, warning: Warning, stacklevel: int) -> None:
        """Nothing: the suite's pytest warns."""


class _Hook(AssertionRewritingHook):
    """pytest's, which is not asked about modules that it would leave to others.

    It takes a while to say so, and heavy imports are of thousands of modules.
    """

    def __init__(self, plan: Rewriting) -> None:
        super().__init__(_HookConfig(plan))  # type: ignore[arg-type]
        self._wanted: tuple[str, ...] = ()
        # Whether a file is a test module or a conftest; it may be, if that depends on its folder.
        patterns = [*plan.python_files, "conftest.py"]
        if any("/" in pattern for pattern in patterns):
            patterns = ["*"]
        self._is_test = re.compile("|".join(map(fnmatch.translate, patterns))).match
        self.mark_rewrite(*plan.names)

    def mark_rewrite(self, *names: str) -> None:
        super().mark_rewrite(*names)
        self._wanted += tuple(f"{name}." for name in names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if f"{name}.".startswith(self._wanted) or self._is_test(f"{name.rpartition('.')[2]}.py"):
            return super().find_spec(name, path, target)
        return None


@contextlib.contextmanager
def rewriting(plan: Rewriting | None) -> Iterator[None]:
    """Import through pytest's hook until the end of the block.

    :param plan: what to rewrite; ``None`` for nothing, as with ``--assert=plain``.
    """
    if plan is None:
        yield
        return
    hook = _Hook(plan)
    # Behind finders that only look on, as that of parent.searches.
    builtin = sys.meta_path.index(BuiltinImporter) if BuiltinImporter in sys.meta_path else 0
    sys.meta_path.insert(builtin, hook)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(hook)


def without_rewriting(name: str) -> None:
    """Have pytest leave a module alone that is imported already, as one may ask in its docstring.

    :param name: of a module that does without rewritten assertions.
    """
    module = sys.modules[name]
    module.__doc__ = f"{module.__doc__ or ''}\n{_NO_REWRITING}"


def plainly_imported(names: Iterable[str]) -> list[str]:
    """Those of the modules to be rewritten that are loaded and were not; pytest warns of them."""
    return [
        name
        for name in names
        if (module := sys.modules.get(name)) is not None
        and not isinstance(module.__loader__, AssertionRewritingHook)
        and not AssertionRewriter.is_rewrite_disabled(module.__doc__ or "")
    ]
