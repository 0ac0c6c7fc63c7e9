"""Imports what a suite will import, ahead of it, as long as that makes no difference to the suite.

A module that warns, starts a thread, opens a connection or seeds a global generator while it is
imported does something that each worker has to do for itself. The parent cannot undo such an
import, so it restarts without that module (see ``starting_anew``), and says which one it was.
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
#: Modules of pytest, xdist and this plugin that every collector would otherwise import while it
#: configures itself; it loads this plugin, too, for the options that the plugin adds.
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
    """The result of carrying out a plan.

    :ivar failures: modules that the user asked for and that failed to import, with the reason.
    :ivar scanned: third-party modules that were loaded because test files import them.
    :ivar environ: variables that imports have set, each with its value before (if any) and after.
    :ivar early: top-level packages that were imported only because the suite will import them.
    """

    failures: dict[str, str]
    scanned: list[str]
    environ: dict[str, tuple[str | None, str]]
    early: set[str]


class Unsafe(Exception):
    """A module did something while it was imported that each worker has to do for itself.

    :ivar package: its top-level package.
    """

    def __init__(self, package: str, reason: str) -> None:
        super().__init__(reason)
        self.package = package


def preload(
    plan: Plan, recorded: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
) -> Preloaded:
    """Import pytest with its usual company, then what the plan says.

    :param recorded: makes a context manager; it is entered while the plan's modules are imported.
    :raises Unsafe: if a module that the user did not ask for must not be imported early.
    """
    for name in (*(f"_pytest.{name}" for name in default_plugins), *_COMPANY):
        importlib.import_module(name)
    # Each worker reports its platform to xdist. Finding it out runs a subprocess; the result is
    # cached, so do it once here.
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
        # The suite's own warning filters apply to its imports, and they are not known yet.
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
    """The variables that have changed, each with its value before (if any) and now."""
    return {
        name: (before.get(name), value)
        for name, value in os.environ.items()
        if before.get(name) != value
    }


def learn(names: list[str], plan: Plan) -> set[str]:
    """Import modules that the suite will import, as long as that makes no difference to it.

    :returns: the top-level packages of those that were not loaded yet.
    :raises Unsafe: at the first package whose early import would make a difference.
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
            # If the import fails, let the suite report it. A module may also raise pytest's Skipped
            # or Exit, which are BaseExceptions.
            with contextlib.suppress(Exception, SystemExit, OutcomeException):
                importlib.import_module(name)
        if package:
            _check(package, before, caught)
    return early


def learn_more(names: list[str], plan: Plan, preloaded: Preloaded) -> None:
    """Import modules that a run has imported, in an idle parent.

    :param preloaded: what the parent has imported so far; updated in place.
    :raises Unsafe: at the first package whose early import would make a difference.
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
