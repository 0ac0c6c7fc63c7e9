"""Imports ahead of pytest that are what pytest's would be: what it rewrites is rewritten.

pytest rewrites the assertions of test modules and of distributions that hold plugins (documented at
"Assertion Rewriting"), and warns of those that were imported without that. So early imports go
through pytest's own import hook, told what the suite's pytest tells it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import BuiltinImporter

from pytest_forkd.compat.assertion_rewriting import RewritingHook, is_rewritten
from pytest_forkd.parent.plan import Rewriting

__all__ = ["plainly_imported", "rewriting", "without_rewriting"]

_NO_REWRITING = "PYTEST_DONT_REWRITE"


@contextlib.contextmanager
def rewriting(plan: Rewriting | None) -> Iterator[None]:
    """Import through pytest's hook until the end of the block.

    :param plan: what to rewrite; ``None`` for nothing, as with ``--assert=plain``.
    """
    if plan is None:
        yield
        return
    hook = RewritingHook(plan)
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
        if (module := sys.modules.get(name)) is not None and not is_rewritten(module)
    ]
