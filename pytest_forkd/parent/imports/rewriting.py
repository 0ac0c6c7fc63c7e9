"""Rewrites assertions in early imports just as pytest would have done.

pytest rewrites the assertions of test modules and of distributions that hold plugins (documented at
"Assertion Rewriting"), and warns about modules that were imported without that. So early imports go
through pytest's own import hook, configured as in the suite's own pytest.
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
    # After finders that only observe, such as the one in searches.py.
    builtin = sys.meta_path.index(BuiltinImporter) if BuiltinImporter in sys.meta_path else 0
    sys.meta_path.insert(builtin, hook)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(hook)


def without_rewriting(name: str) -> None:
    """Stop pytest from warning that an imported module has no rewritten assertions.

    :param name: the module; a marker for pytest is added to its docstring.
    """
    module = sys.modules[name]
    module.__doc__ = f"{module.__doc__ or ''}\n{_NO_REWRITING}"


def plainly_imported(names: Iterable[str]) -> list[str]:
    """Modules that should have been rewritten but were loaded without; pytest warns about them."""
    return [
        name
        for name in names
        if (module := sys.modules.get(name)) is not None and not is_rewritten(module)
    ]
