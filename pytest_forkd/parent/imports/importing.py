"""Records which file is being imported, where it can still be read if the import kills the process.

A module or conftest may end the process that imports it: with ``os._exit()``, a segmentation fault,
or for lack of memory. Its parent process then reads the record, and the next process that collects
reports that file as an error instead of importing it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from pytest_forkd.compat.pytest import around_conftest_imports
from pytest_forkd.parent.hygiene import CrashFiles, write_into

__all__ = ["note_conftests", "watch_imports"]


def watch_imports(config: pytest.Config, files: CrashFiles, request: dict[str, Any]) -> None:
    """Register the plugins that deal with test files that end the process importing them.

    :param files: where the file being imported is recorded; see :class:`ImportNotes`.
    :param request: the run's request; ``deadly`` lists files that have ended a process before.
    """
    notes = ImportNotes(files, request.get("deadly", {}))
    config.pluginmanager.register(notes, "forkd-import-notes")
    config.pluginmanager.register(ExitsAtImport(), "forkd-exits-at-import")


class ImportNotes:
    """A plugin of the process that collects: records each file before it is imported.

    :param files: receives that record, captured output and crash dumps.
    :param deadly: what to report for files that have ended a process before, by path: ``text`` of
        the error, and ``sections`` with what the process had printed.
    """

    def __init__(self, files: CrashFiles, deadly: dict[str, dict[str, Any]]) -> None:
        self.files = files
        self.deadly = deadly

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Leave something to read after a crash."""
        write_into(session.config, self.files)

    @pytest.hookimpl(tryfirst=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Any:
        """Record a file that is about to be imported; report an error for a deadly one."""
        if not isinstance(collector, pytest.File):
            self.files.note("")
            return None
        path = str(collector.path)
        known = self.deadly.get(path)
        if known is None:
            self.files.note(path)
            return None
        sections = [(str(name), str(text)) for name, text in known["sections"]]
        return pytest.CollectReport(collector.nodeid, "failed", known["text"], [], sections)

    @pytest.hookimpl
    def pytest_collectreport(self) -> None:
        """Clear the record: the collector is done."""
        self.files.note("")


class ExitsAtImport:
    """A plugin of the process that collects: reports ``sys.exit()`` in a file as that file's error.

    Otherwise it would end the session as if there had been an internal error.
    """

    @pytest.hookimpl(hookwrapper=True, trylast=True)  # old-style wrappers add no traceback entry
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None, Any, None]:
        """Report the exit."""
        outcome = yield
        if isinstance(outcome.exception, SystemExit):
            excinfo = pytest.ExceptionInfo.from_exception(outcome.exception)
            text = collector.repr_failure(excinfo)
            outcome.force_result(pytest.CollectReport(collector.nodeid, "failed", text, []))


def note_conftests(files: CrashFiles) -> None:
    """Record conftests while they are imported, too; pytest has no hook for that.

    Call it once in a process, and again in each fork with that fork's own ``files``.
    """

    def import_and_note(import_conftest: Callable[[], Any], path: str) -> Any:
        files.note(path)
        module = import_conftest()
        files.note("")
        return module

    around_conftest_imports(import_and_note)
