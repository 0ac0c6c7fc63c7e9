"""Hooks of the project that need the process in which an earlier hook ran."""

from __future__ import annotations

from types import CodeType
from typing import Any

from pytest_forkd.parent.watch.findings import Finding, is_installed, place_of

__all__ = ["hook_findings"]

#: Hooks that run in each worker, as under xdist, and may undo what an earlier hook has done.
_ENDING = ("pytest_sessionfinish", "pytest_unconfigure")
#: Hooks that have run before the fork, once for all workers.
_EARLIER = (
    "pytest_configure",
    "pytest_collection",
    "pytest_collection_modifyitems",
    "pytest_collection_finish",
)
#: A hook that uses only these names declares markers, reads options, or marks and sorts items. It
#: changes nothing outside the process's memory, so nothing that workers could undo twice.
_DESCRIBING = frozenset(
    {
        "add_marker",
        "addinivalue_line",
        "all",
        "any",
        "append",
        "args",
        "bool",
        "config",
        "dict",
        "endswith",
        "enumerate",
        "filter",
        "fspath",
        "get",
        "get_closest_marker",
        "getattr",
        "getini",
        "getoption",
        "getvalue",
        "hasattr",
        "int",
        "isinstance",
        "items",
        "iter_markers",
        "key",
        "keywords",
        "len",
        "list",
        "mark",
        "name",
        "nodeid",
        "option",
        "path",
        "pytest",
        "reason",
        "set",
        "skip",
        "skipif",
        "sort",
        "sorted",
        "startswith",
        "str",
        "tuple",
        "workerinput",
        "xfail",
    }
)


def hook_findings(pluginmanager: Any) -> list[Finding]:
    """The project's hooks that would act differently in a worker than in one of xdist's.

    ``pytest_sessionstart`` runs only once, before the fork. A hook that ends a session runs in each
    worker; it is a finding if an earlier hook, run once, may have done what it undoes.

    :param pluginmanager: pytest's plugin manager.
    """
    findings = [
        Finding("pytest_sessionstart is implemented and expects to run in each worker", *place)
        for place, _code in _implementations(pluginmanager, "pytest_sessionstart")
    ]
    done = next(
        (
            name
            for name in _EARLIER
            for _place, code in _implementations(pluginmanager, name)
            if not _only_describes(code)
        ),
        None,
    )
    if done is not None:
        for name in _ENDING:
            what = f"{name} may undo in each worker what {done} has done once"
            findings += [
                Finding(what, *place) for place, _code in _implementations(pluginmanager, name)
            ]
    return findings


def _implementations(pluginmanager: Any, name: str) -> list[tuple[tuple[str, int], CodeType]]:
    """The project's own implementations of a hook: their places and their code."""
    found = []
    for implementation in getattr(pluginmanager.hook, name).get_hookimpls():
        function = implementation.function
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        if code is not None and not _is_ours(implementation.plugin):
            place = place_of(code)
            if not is_installed(place[0]):
                found.append((place, code))
    return found


def _only_describes(code: CodeType) -> bool:
    return _DESCRIBING.issuperset(code.co_names) and all(
        _only_describes(constant) for constant in code.co_consts if isinstance(constant, CodeType)
    )


def _is_ours(plugin: object) -> bool:
    module = getattr(plugin, "__name__", None) or type(plugin).__module__
    return str(module).partition(".")[0] in ("pytest_forkd", "xdist", "_pytest")
