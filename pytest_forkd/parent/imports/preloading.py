"""Importing what suites import, ahead of them, and only what is the same for that.

What a suite imports later anyway may be imported early if nobody can tell the difference: a module
that warns, starts a thread, opens a connection or seeds a global generator while it is imported
does something that belongs into each worker. The parent cannot take such an import back, so it
starts anew without that module (see ``starting_anew``), and says which one it was.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import random
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from pytest_forkd.compat.pytest import OutcomeException, default_plugins
from pytest_forkd.parent import processes
from pytest_forkd.parent.imports.rewriting import rewriting, without_rewriting
from pytest_forkd.parent.plan import Plan
from pytest_forkd.parent.third_party import (
    installed_modules,
    last_module,
    modules_since,
    named_modules,
)
from pytest_forkd.parent.watch.resources import OpenFiles, resource_findings
from pytest_forkd.parent.watch.shared import child_processes

__all__ = ["Preloaded", "Unsafe", "environ_changes", "learn_more", "preload"]

#: Categories of warnings that Python and pytest ignore by default.
_IGNORED_WARNINGS = (ImportWarning, ResourceWarning)
#: What pytest, xdist and this plugin import later, while a collector configures itself: the plugin
#: is loaded in each, as pytest loads it, and has to add its options.
_COMPANY = (
    "pdb",
    "pytest_forkd.forkd.options",
    "pytest_forkd.hookspecs",
    "pytest_forkd.parent.worker.collector",
    "pytest_forkd.plugin",
    "pytest_forkd.qemu.options",
    "pytest_forkd.controller.settings",
    "xdist.looponfail",
    "xdist.newhooks",
    "xdist.plugin",
)


@dataclass
class Preloaded:
    """What came of a plan.

    :ivar failures: for each module that was asked for and failed to import, why.
    :ivar scanned: the third-party modules that are loaded because test files name them.
    :ivar environ: variables that imports have set: the value before, if any, and after.
    :ivar early: top-level packages that were imported because the suite imports them, too.
    """

    failures: dict[str, str]
    scanned: list[str]
    environ: dict[str, tuple[str | None, str]]
    early: set[str]


class Unsafe(Exception):
    """A module did something while it was imported that belongs into each worker.

    :ivar package: its top-level package.
    """

    def __init__(self, package: str, reason: str) -> None:
        super().__init__(reason)
        self.package = package


def preload(
    plan: Plan, recorded: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
) -> Preloaded:
    """Import pytest with its usual company, then what the plan says.

    :param recorded: makes what is entered while modules of the plan are imported.
    :raises Unsafe: if a module that nobody asked for turns out to be none to import early.
    """
    for name in (*(f"_pytest.{name}" for name in default_plugins), *_COMPANY):
        importlib.import_module(name)
    # Each worker tells xdist its platform; finding out takes a subprocess, once.
    platform.platform()
    for name in (
        "xdist",
        "xdist.looponfail",
        "xdist.plugin",
        "pytest_forkd",
        "pytest_forkd.plugin",
    ):
        without_rewriting(name)
    own_path, own_environ = list(sys.path), dict(os.environ)
    sys.path[:0] = plan.path
    os.chdir(plan.cwd)
    failures = {}
    with warnings.catch_warnings(), recorded():
        # A suite's own filters decide what its imports may warn about; they are not known yet.
        warnings.simplefilter("ignore")
        with rewriting(plan.rewriting):
            for name in plan.preload:
                try:
                    importlib.import_module(name)
                except (Exception, SystemExit, OutcomeException) as exc:
                    failures[name] = f"{type(exc).__name__}: {exc}"
    scanned: list[str] = []
    early: set[str] = set()
    if not failures:
        with recorded():
            early |= learn(plan.learnt, plan)
        if plan.scan is not None:
            last = last_module()
            names = named_modules(plan.scan, [], plan.exclude)
            with recorded():
                early |= learn(names, plan)
            scanned = installed_modules(modules_since(last))
    os.chdir("/")
    sys.path[:] = own_path
    return Preloaded(failures, scanned, environ_changes(own_environ), early)


def environ_changes(before: dict[str, str]) -> dict[str, tuple[str | None, str]]:
    """The variables that are not what they were: their values then, if any, and now."""
    return {
        name: (before.get(name), value)
        for name, value in os.environ.items()
        if before.get(name) != value
    }


def learn(names: list[str], plan: Plan) -> set[str]:
    """Import modules that the suite will import, as long as that makes no difference to it.

    :returns: the top-level packages of those that were not imported yet.
    :raises Unsafe: at the first one that does.
    """
    early: set[str] = set()
    if "*" in plan.skip:
        return early
    before = _Before(OpenFiles(), random.getstate(), processes.children())
    package = ""
    with warnings.catch_warnings(record=True) as caught, rewriting(plan.rewriting):
        warnings.simplefilter("always")
        for category in _IGNORED_WARNINGS:
            warnings.simplefilter("ignore", category)
        for name in names:
            top = name.partition(".")[0]
            if name in sys.modules or top in plan.skip or top in plan.exclude:
                continue
            if package not in ("", top):
                _check(package, before, caught)
            package = top
            early.add(top)
            # One that fails is left for the suite to fail on. Skipped and Exit of pytest are
            # BaseExceptions; a module may raise them, too.
            with contextlib.suppress(Exception, SystemExit, OutcomeException):
                importlib.import_module(name)
        if package:
            _check(package, before, caught)
    return early


def learn_more(names: list[str], plan: Plan, preloaded: Preloaded) -> None:
    """Import modules that a run has imported, in a parent that is at rest.

    :param preloaded: what the parent has imported, which is added to.
    :raises Unsafe: at the first one that makes a difference.
    """
    own_path, own_environ = list(sys.path), dict(os.environ)
    sys.path[:0] = plan.path
    try:
        preloaded.early |= learn(names, plan)
    finally:
        sys.path[:] = own_path
        preloaded.environ.update(environ_changes(own_environ))


@dataclass
class _Before:
    """What was there before anything was imported."""

    files: OpenFiles
    seeds: object
    children: list[int]


def _check(package: str, before: _Before, caught: list[warnings.WarningMessage] | Any) -> None:
    if caught:
        raise Unsafe(package, f"warns when it is imported: {caught[0].message}")
    findings = [*resource_findings(before.files, ()), *child_processes(before.children)]
    if findings:
        raise Unsafe(package, f"when it is imported, {findings[0].what}")
    if random.getstate() != before.seeds:
        raise Unsafe(package, "seeds or draws random numbers when it is imported")
