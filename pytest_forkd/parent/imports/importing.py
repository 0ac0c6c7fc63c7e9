"""Notes which file is being imported, where that can be read after the process has died.

A module or conftest may end the process that imports it: with ``os._exit()``, a segmentation fault,
or for lack of memory. Who is left reads the note, and another process reports the file as an error
instead of importing it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from pytest_forkd.compat.pytest import around_conftest_imports
from pytest_forkd.parent.hygiene import CrashFiles, write_into

__all__ = ["note_conftests", "watch_imports"]


def watch_imports(config: pytest.Config, files: CrashFiles, request: dict[str, Any]) -> None:
    """Register what sees to test files that end whoever imports them.

    :param files: where notes go; see :class:`ImportNotes`.
    :param request: the run's, which knows files that have done so before.
    """
    notes = ImportNotes(files, request.get("deadly", {}))
    config.pluginmanager.register(notes, "forkd-import-notes")
    config.pluginmanager.register(ExitsAtImport(), "forkd-exits-at-import")


class ImportNotes:
    """A plugin of whoever collects.

    :param files: where the note goes, and what is captured and dumped meanwhile.
    :param deadly: by path: what is to be reported of a file that has ended a process before; the
        error's text, and the sections of what the process had printed.
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
        """Note a file that is about to be imported; report one that must not be."""
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
        """A collector is done."""
        self.files.note("")


class ExitsAtImport:
    """A plugin of whoever collects: a file that calls ``sys.exit()`` is an error of that file.

    It would end the session in the middle of nothing, as if something internal had gone wrong.
    """

    @pytest.hookimpl(hookwrapper=True, trylast=True)  # such a wrapper is in no traceback
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None, Any, None]:
        """Report the exit."""
        outcome = yield
        if isinstance(outcome.exception, SystemExit):
            excinfo = pytest.ExceptionInfo.from_exception(outcome.exception)
            text = collector.repr_failure(excinfo)
            outcome.force_result(pytest.CollectReport(collector.nodeid, "failed", text, []))


def note_conftests(files: CrashFiles) -> None:
    """Note conftests while they are imported, too; pytest has no hook for that.

    To be called once in a process, and again in its fork, with files of its own.
    """

    def import_and_note(import_conftest: Callable[[], Any], path: str) -> Any:
        files.note(path)
        module = import_conftest()
        files.note("")
        return module

    around_conftest_imports(import_and_note)
