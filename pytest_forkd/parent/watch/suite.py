"""Everything that is watched while the collector configures and collects."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from pytest_forkd.parent.hygiene import capture_fds
from pytest_forkd.parent.third_party import last_module, modules_since, third_party_modules
from pytest_forkd.parent.watch.adapters import adapted_fds
from pytest_forkd.parent.watch.findings import Finding, project_modules
from pytest_forkd.parent.watch.hooks import hook_findings
from pytest_forkd.parent.watch.resources import OpenFiles, resource_findings
from pytest_forkd.parent.watch.seeds import SeedWatch
from pytest_forkd.parent.watch.shared import shared_findings
from pytest_forkd.parent.watch.tripwires import (
    EnvironTripwire,
    PidTripwire,
    TempfileTripwire,
    WorkerInput,
)

__all__ = ["Watch"]


class Watch:
    """Watches from its construction until :meth:`stop`.

    :param workerinput: what ``config.workerinput`` will be.
    """

    def __init__(self, workerinput: WorkerInput) -> None:
        self._workerinput = workerinput
        self._files = OpenFiles()
        self._last_module = last_module()
        self._environ = EnvironTripwire()
        self._tempfiles = TempfileTripwire()
        self._pids = PidTripwire()
        #: Which random generators were seeded on purpose; workers use it to reseed the others.
        self.seeds = SeedWatch()
        self._environ.arm()
        self._tempfiles.arm()
        self._pids.arm()
        self.seeds.start()

    def stop(self) -> None:
        """Stop watching, and restore everything that was patched for it."""
        self._environ.disarm()
        self._tempfiles.disarm()
        self._pids.disarm()
        self.seeds.stop()

    def trips(self, config: Any) -> list[Finding]:
        """The findings so far, without looking at open resources."""
        return [
            *hook_findings(config.pluginmanager),
            *self._workerinput.trips,
            *self._environ.trips,
            *self._pids.trips,
        ]

    def resources(self, config: Any, known_fds: list[int]) -> list[Finding]:
        """Findings about what was opened, made or started since, and still exists.

        :param known_fds: descriptors of this plugin's own.
        """
        known = [*known_fds, *capture_fds(config), *adapted_fds(config)]
        findings = [
            *resource_findings(self._files, known),
            *shared_findings(),
            *self._tempfiles.trips,
        ]
        factory = getattr(config, "_tmp_path_factory", None)
        if getattr(factory, "_basetemp", None) is not None:
            findings.append(Finding("a temporary directory was made during collection"))
        return findings

    def suite_has_finalizers(self) -> bool:
        """Whether a module of the project, imported since, has a class with ``__del__``.

        Instances of it may be frozen, so that they are not collected. Files, sockets, processes and
        event loops, which warn when freed, need no check: the collection is not shared with any.
        """
        return any(
            "__del__" in vars(value)
            for module in project_modules(modules_since(self._last_module))
            for value in list(vars(module).values())
            if issubclass(type(value), type)
        )

    def modules(self, config: Any, exclude: Container[str]) -> list[str]:
        """The third-party modules that were imported since, less the project's own packages."""
        return third_party_modules(modules_since(self._last_module), config, exclude)
