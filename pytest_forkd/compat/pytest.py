"""What is private to pytest. Read in, and checked with, pytest 8.0 to 9.2.

A worker imports this module, so it imports nothing that pytest has not loaded by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _pytest.cacheprovider import Cache
from _pytest.config import (
    ConftestImportFailure,
    PytestPluginManager,
    _prepareconfig,
    apply_warning_filters,
    default_plugins,
)
from _pytest.outcomes import Exit, OutcomeException

__all__ = [
    "ConftestImportFailure",
    "Exit",
    "OutcomeException",
    "apply_warning_filters",
    "around_conftest_imports",
    "cache_directory",
    "cache_directory_of",
    "capture_files",
    "default_plugins",
    "faulthandler_fd",
    "global_capture",
    "look_for_garbage_with",
    "prepare_config",
    "renew_global_capture",
    "set_basetemp",
    "set_nodeid",
    "set_program_name",
    "terminal_file",
    "unconfigure",
    "use_terminal_file",
]

_IMPORT_CONFTEST = PytestPluginManager._importconftest

# -- configuration -----------------------------------------------------------------------------


def prepare_config(args: list[str]) -> Any:
    """Make a configuration with plugins and conftests loaded, as ``pytest.main()`` does first."""
    return _prepareconfig(args, None)


def set_program_name(config: Any, name: str) -> None:
    """Set the program name that usage errors show."""
    config._parser.prog = name


def unconfigure(config: Any) -> None:
    """Call ``pytest_unconfigure`` and clean up, if that has not been done."""
    config._ensure_unconfigure()


def around_conftest_imports(wrap: Callable[[Callable[[], Any], str], Any]) -> None:
    """Have every import of a conftest go through ``wrap``; replaces any earlier wrapper.

    :param wrap: called with a function that imports the conftest, and the conftest's path; returns
        what the function returns.
    """

    def import_conftest(self: Any, conftestpath: Any, *args: Any, **kwargs: Any) -> Any:
        return wrap(
            lambda: _IMPORT_CONFTEST(self, conftestpath, *args, **kwargs), str(conftestpath)
        )

    PytestPluginManager._importconftest = import_conftest  # type: ignore[method-assign]


# -- directories -------------------------------------------------------------------------------


def cache_directory(config: pytest.Config) -> Path:
    """Where the cache will be; usable before there is ``config.cache``."""
    return Cache.cache_dir_from_config(config, _ispytest=True)


def cache_directory_of(cache: Any) -> Path:
    """Where the cache is."""
    return Path(cache._cachedir)


def set_basetemp(factory: Any, path: Path) -> None:
    """Make a ``tmp_path_factory`` use another base directory from now on."""
    factory._given_basetemp = path
    factory._basetemp = None


def set_nodeid(item: Any, nodeid: str) -> None:
    """Change an item's node id in versions where these are structured (pytest 9.2 and later)."""
    item._id = type(item._id).parse(nodeid)


# -- capture and output ------------------------------------------------------------------------


def global_capture(config: pytest.Config) -> Any:
    """pytest's global capture; ``None`` with ``-s`` or without the capture plugin."""
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    return None if manager is None else manager._global_capturing


def renew_global_capture(config: pytest.Config, opened: Callable[[], object]) -> None:
    """Capture into new files; what was captured before stays in the old ones.

    Call it where capture is suspended, as it is in ``pytest_runtestloop``.

    :param opened: called once they are open, before capture is suspended again.
    """
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    # stop_global_capturing() would print what has been captured.
    manager._global_capturing.stop_capturing()
    manager._global_capturing = None
    manager.start_global_capturing()
    opened()
    manager.suspend_global_capture()


def capture_files(capturing: Any) -> list[tuple[Any, int | None]]:
    """The files that standard output and error are captured in, with capture at descriptor level.

    :returns: pairs of the file and the descriptor that is redirected to it now, if any.
    """
    return [
        (capture.tmpfile, capture.targetfd if capture._state == "started" else None)
        for capture in (capturing.out, capturing.err)
        if hasattr(capture, "targetfd_save")
    ]


def faulthandler_fd(config: pytest.Config) -> int | None:
    """The copy of standard error's descriptor that pytest's faulthandler plugin keeps."""
    with contextlib.suppress(ImportError, KeyError):
        from _pytest.faulthandler import fault_handler_stderr_fd_key

        return config.stash[fault_handler_stderr_fd_key]
    return None


def terminal_file(reporter: Any) -> Any:
    """The file that a terminal reporter writes to; ``None`` if it works unlike pytest's own."""
    return getattr(getattr(reporter, "_tw", None), "_file", None)


def use_terminal_file(reporter: Any, file: Any) -> None:
    """Make a terminal reporter write to another file."""
    reporter._tw._file = file


# -- the end -----------------------------------------------------------------------------------


def look_for_garbage_with(look: Callable[[int], None]) -> None:
    """Replace pytest's final garbage collection by ``look``, which gets the number of passes.

    pytest before 8.4 has no final collection.
    """
    from _pytest import unraisableexception

    if hasattr(unraisableexception, "gc_collect_harder"):
        unraisableexception.gc_collect_harder = look  # type: ignore[assignment]
