"""The plugin that pytest loads: options, ini values, and hooks that install the session."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

import pytest

import pytest_forkd

if TYPE_CHECKING:
    from pytest_forkd.backends.base import Backend
    from pytest_forkd.controller.settings import Settings
    from pytest_forkd.parent.plan import Plan

__all__: list[str] = []


@pytest.hookimpl
def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, and an ini value for each."""
    from pytest_forkd.controller.settings import BACKENDS, WARM_LEVELS
    from pytest_forkd.forkd.options import add_options
    from pytest_forkd.qemu import options as qemu_options

    group = parser.getgroup("forkd", "workers that are clones of one prewarmed parent")
    group.addoption(
        "--forkd-workers",
        dest="forkd_workers",
        metavar="N",
        help="Number of workers: a number, 'auto' for one a processor, 0 for none. "
        "Ini value: forkd_workers.",
    )
    group.addoption(
        "--forkd-backend",
        dest="forkd_backend",
        metavar="NAME",
        help=f"How clones are made: {', '.join(BACKENDS)}. Ini value: forkd_backend.",
    )
    group.addoption(
        "--forkd-warm",
        dest="forkd_warm",
        metavar="LEVEL",
        help=f"How far the parent gets before it is cloned: {', '.join(WARM_LEVELS)}. 'auto' "
        "collects once for all workers unless the suite would behave differently then. "
        "Ini value: forkd_warm.",
    )
    group.addoption(
        "--forkd-preload",
        dest="forkd_preload",
        metavar="MODULE",
        action="append",
        help="Module for the parent to import; may be given several times. "
        "Ini value: forkd_preload, one a line.",
    )
    group.addoption(
        "--forkd-keep",
        dest="forkd_keep",
        metavar="SECONDS",
        help="Keep the parent for so long after the run, for the next one to start faster; 0 not "
        "to keep it. 600 by default, 0 where the environment variable CI is set and in a run that "
        "a test starts. "
        "Ini value: forkd_keep.",
    )
    group.addoption(
        "--forkd-durations",
        dest="forkd_durations",
        metavar="FILE",
        help="Keep the tests' durations in this file, not in pytest's cache: it is read at the "
        "start if it exists, and written at the end. Ini value: forkd_durations.",
    )
    parser.addini("forkd_durations", "File for the tests' durations (see --forkd-durations)")
    parser.addini("forkd_workers", "Number of workers that are clones (see --forkd-workers)")
    parser.addini("forkd_backend", "How clones are made (see --forkd-backend)")
    parser.addini("forkd_warm", "How far the parent gets before it is cloned (see --forkd-warm)")
    parser.addini(
        "forkd_preload", "Modules for the parent to import, one a line", type="linelist", default=[]
    )
    parser.addini("forkd_keep", "Seconds to keep the parent after a run (see --forkd-keep)")
    parser.addini("forkd_keep_max", "How many parents are kept for a user; 4 by default")
    parser.addini(
        "forkd_keep_ignore_env",
        "Environment variables (patterns) that make no other parent; with ! in front, that do",
        type="linelist",
        default=[],
    )
    parser.addini(
        "forkd_replace_xdist",
        "Let xdist's -n make workers that are clones",
        type="bool",
        default=False,
    )
    add_options(parser)
    qemu_options.add_options(parser)


@pytest.hookimpl
def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the hook specifications."""
    from pytest_forkd import hookspecs as newhooks

    pluginmanager.add_hookspecs(newhooks)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    """Start the parent as early as the options are known, before any conftest is loaded."""
    if pytest_forkd._config_of_a_clone or _in_xdist_worker():
        return (yield)
    controller = _Controller.make(early_config)
    if controller is None:
        return (yield)
    early_config.pluginmanager.register(controller, "forkd-controller")
    early_config.add_cleanup(controller.close)
    try:
        return (yield)
    except BaseException:
        controller.close()
        raise


def _in_xdist_worker() -> bool:
    """Whether this process is a worker that xdist has started; it has the controller's options.

    Its configuration does not show that yet. The environment alone is not enough, since a pytest
    started by a test inherits it; but only execnet's workers are started with ``python -c``.
    """
    return sys.argv[:1] == ["-c"] and "PYTEST_XDIST_WORKER" in os.environ


def _ends_with_the_run() -> bool:
    """Whether the process ends with pytest; false if a program has called ``pytest.main()``."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        # pytest.console_main(), whose name begins with an underscore since pytest 9.
        if frame.f_code.co_name.lstrip("_") == "console_main":
            return frame.f_globals.get("__name__") == "_pytest.config"
        frame = frame.f_back
    return False


class _Controller:
    """Lives in the controller of a run that is distributed over clones."""

    def __init__(self, settings: Settings, backend: Backend, plan: Plan) -> None:
        self.settings = settings
        self.backend = backend
        self.plan = plan

    @classmethod
    def make(cls, config: pytest.Config) -> _Controller | None:
        """Read the settings and start the backend.

        :returns: ``None`` if this run is not distributed by forkd.
        :raises pytest.UsageError: if it cannot be.
        """
        from pytest_forkd.backends.base import BackendError
        from pytest_forkd.controller.internals import missing_internals
        from pytest_forkd.controller.preload_plan import make_plan
        from pytest_forkd.controller.run_request import early_request
        from pytest_forkd.controller.settings import make_backend, read_settings
        from pytest_forkd.runtime import frozen_gc as frozen

        namespace = config.known_args_namespace
        settings = read_settings(config, namespace)
        if settings is None:
            return None
        if _ends_with_the_run():
            # What is loaded by now stays loaded, so pytest's final collection need not visit it.
            frozen.watch()
            frozen.freeze()
        try:
            plan = make_plan(config, namespace, settings)
            lacking = missing_internals(config)
            backend = make_backend(settings, plan) if lacking is None else None
            if backend is None:
                why = (
                    _FRAGILE if lacking is None else f"{lacking}; a newer pytest-forkd may know it"
                )
                config.pluginmanager.register(_PlainXdist(settings, why), "forkd-plain-xdist")
                namespace.numprocesses = settings.workers
                return None
            backend.start()
            if settings.warm != "imports":
                # If a conftest changes what this guess is based on, the collector is dropped.
                backend.start_collector(early_request(config, namespace, settings))
        except BackendError as exc:
            raise pytest.UsageError(f"pytest-forkd: {exc}") from exc
        # Plugins read xdist's options to tell whether a run is distributed; pytest-cov does so
        # as early as this.
        namespace.numprocesses = settings.workers
        return cls(settings, backend, plan)

    def close(self) -> None:
        """End the parent and everything below it; safe to call twice."""
        self.backend.close()

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> None:
        """Set xdist's options as ``-n`` would."""
        # Other plugins read the mode, and know only those of xdist.
        nobody_asked = config.option.dist == "no"
        if not distribute(config, self.settings):
            self.backend.close()
        self.settings = replace(self.settings, own_scheduler=nobody_asked)

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Replace xdist's session, which has just been registered, by forkd's.

        This plugin was registered after xdist, so its ``trylast`` hook runs later.
        """
        from pytest_forkd.controller.session import ForkdSession

        manager = config.pluginmanager
        for name in ("dsession", "terminaldistreporter"):
            plugin = manager.getplugin(name)
            if plugin is not None:
                manager.unregister(plugin, name)
        if config.option.dist == "no" or not config.option.tx:
            return  # a later plugin has decided against distribution
        manager.register(ForkdSession(config, self.settings, self.backend, self.plan), "dsession")


def distribute(config: pytest.Config, settings: Settings) -> int:
    """Set the options that xdist, and plugins that depend on it, read.

    :returns: the number of workers; 0 if the run is not distributed after all.
    """
    from pytest_forkd.controller.settings import count_workers

    workers = count_workers(settings, config)
    option = config.option
    option.numprocesses = workers
    option.tx = ["popen"] * workers
    if not workers:
        option.dist = "no"
    elif option.dist == "no":
        option.dist = "load"
    return workers


#: Why ``auto`` forks no workers on macOS.
_FRAGILE = "macOS frameworks may not survive fork(); --forkd-backend=process forks all the same"


class _PlainXdist:
    """Leaves the workers to xdist, and says so.

    :param why: in words.
    """

    def __init__(self, settings: Settings, why: str) -> None:
        self.settings = settings
        self.why = why

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> None:
        """Set xdist's options as ``-n`` would."""
        distribute(config, self.settings)

    @pytest.hookimpl
    def pytest_report_header(self) -> str:
        return f"forkd: plain xdist workers: {self.why}"
