"""pytest's import hook, which rewrites assertions, without a ``pytest.Config``.

Read in, and checked with, pytest 8.0 to 9.2 and pluggy 1.5 and 1.6.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

import pytest
from _pytest.assertion import AssertionState
from _pytest.assertion.rewrite import AssertionRewriter, AssertionRewritingHook, assertstate_key
from pluggy._tracing import TagTracer

__all__ = ["RewritingHook", "Wishes", "is_rewritten"]


class Wishes(Protocol):
    """What is to be rewritten.

    :ivar names: modules and packages.
    :ivar python_files: patterns of test files.
    :ivar pass_hook: whether ``pytest_assertion_pass`` is to be called.
    """

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def python_files(self) -> Sequence[str]: ...

    @property
    def pass_hook(self) -> bool: ...


class _HookConfig:
    """The part of ``pytest.Config`` that the import hook uses."""

    def __init__(self, plan: Wishes) -> None:
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
        """Do nothing: the suite's own pytest warns."""


class RewritingHook(AssertionRewritingHook):
    """pytest's hook, called only for modules that it might rewrite.

    It is slow to decline a module, and heavy libraries consist of thousands of modules.
    """

    def __init__(self, plan: Wishes) -> None:
        super().__init__(_HookConfig(plan))  # type: ignore[arg-type]
        self._wanted: tuple[str, ...] = ()
        # A pattern with a slash depends on the folder, so then any file may be a test module.
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


def is_rewritten(module: ModuleType) -> bool:
    """Whether pytest has rewritten a module, or its docstring disables rewriting."""
    return isinstance(
        module.__loader__, AssertionRewritingHook
    ) or AssertionRewriter.is_rewrite_disabled(module.__doc__ or "")
