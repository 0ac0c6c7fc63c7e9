"""What a run's parent imports ahead of the suite: learns it, and leaves it out if it does harm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from pytest_forkd.backends.base import Backend
from pytest_forkd.controller.suite_memory import Modules, WarmMemory
from pytest_forkd.parent.plan import Plan, Rewriting

__all__ = ["EarlyImports"]


class EarlyImports:
    """The modules that are imported before the suite imports them.

    :param config: the controller's configuration.
    :param backend: the backend, whose parent imports them.
    :param plan: what the parent was told to import.
    :param modules: what is known about the suite's imports.
    :param memory: where that is remembered.
    """

    def __init__(
        self,
        config: pytest.Config,
        backend: Backend,
        plan: Plan,
        modules: Modules,
        memory: WarmMemory,
    ) -> None:
        self._config = config
        self._backend = backend
        self._memory = memory
        self.plan = plan
        self.modules = modules
        #: Whether it matters which modules were imported without being rewritten.
        self._cared_for = True

    def rewriting(self) -> Rewriting | None:
        """Which modules have their assertions rewritten, now that conftests are loaded."""
        return Rewriting.of(self._config) if self._cared_for else None

    def learn(self, names: list[str], *, complete: bool) -> None:
        """Remember which third-party modules a collection imported.

        :param names: the modules, without those that the parent had imported before.
        :param complete: whether everything was collected.
        """
        if not self._backend.trusted:
            return
        known = self.modules
        scanned, skipped = self._backend.early_imports()
        late = self._rewritten_for_conftests()
        names = [name for name in names if name.partition(".")[0] not in late]
        self._remember(
            replace(
                known,
                names=list(dict.fromkeys([*known.names, *scanned, *names])),
                complete=complete or known.complete,
                skip={**known.skip, **skipped},
            )
        )
        self._backend.learn(names)

    def leave_out(self, names: Iterable[str]) -> None:
        """Switch to a parent that does not import these modules, since pytest must rewrite them.

        If no other parent can be had, pytest warns and goes on.
        """
        packages = {name.partition(".")[0] for name in names}
        if packages <= self.plan.skip.keys():  # another package imports them, too
            found = self.do_without("pytest rewrites " + ", ".join(sorted(packages)))
        else:
            found = self._skip(dict.fromkeys(packages, "a conftest has its assertions rewritten"))
        self._cared_for = found

    def do_without(self, why: str) -> bool:
        """Switch to a parent that imports nothing early, also in later runs of the suite.

        :param why: the reason, in words.
        :returns: whether there is such a parent, so that a collector can be asked for again.
        """
        return self._skip({"*": why})

    def _skip(self, packages: dict[str, str]) -> bool:
        if packages.keys() <= self.plan.skip.keys():
            return False
        plan = replace(self.plan, skip={**self.plan.skip, **packages})
        if not self._backend.take_another(plan):
            return False
        self.plan = plan
        self._remember(replace(self.modules, skip={**self.modules.skip, **packages}))
        return True

    def _rewritten_for_conftests(self) -> set[str]:
        """Packages to be rewritten that the parent's plan did not know; conftests add such."""
        now, before = self.rewriting(), self.plan.rewriting
        if now is None or before is None:
            return set()
        return {name.partition(".")[0] for name in {*now.names}.difference(before.names)}

    def _remember(self, modules: Modules) -> None:
        self.modules = modules
        self._memory.remember_modules(modules)
