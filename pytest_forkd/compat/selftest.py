"""Checks that the installed libraries have the private names that are used here.

If a release renames one of them, every worker would fail at its start. The check takes a few
milliseconds, and runs once for each set of versions.
"""

from __future__ import annotations

import importlib
from types import CodeType
from typing import Any

from pytest_forkd.compat.versions import LIBRARIES

__all__ = ["missing"]

#: By library: ``module:name.of.an.attribute``. After a ``|`` comes a name that the function or
#: class must use: an attribute that exists only on instances, and so cannot be looked up.
_NEEDED = {
    "pytest": (
        "_pytest.assertion:AssertionState",
        "_pytest.assertion.rewrite:AssertionRewriter.is_rewrite_disabled",
        "_pytest.assertion.rewrite:AssertionRewritingHook.find_spec",
        "_pytest.assertion.rewrite:AssertionRewritingHook.mark_rewrite",
        "_pytest.assertion.rewrite:assertstate_key",
        "_pytest.cacheprovider:Cache.__init__|_cachedir",
        "_pytest.cacheprovider:Cache.cache_dir_from_config",
        "_pytest.capture:CaptureManager.__init__|_global_capturing",
        "_pytest.capture:FDCapture|targetfd_save",
        "_pytest.config:Config._ensure_unconfigure",
        "_pytest.config:Config.__init__|_parser",
        "_pytest.config:PytestPluginManager._importconftest",
        "_pytest.config:_prepareconfig",
        "_pytest.config:apply_warning_filters",
        "_pytest.config:default_plugins",
        "_pytest.outcomes:Exit",
        "_pytest.outcomes:OutcomeException",
        "_pytest.terminal:TerminalReporter.__init__|_tw",
        "_pytest.tmpdir:TempPathFactory|_given_basetemp",
        "_pytest.tmpdir:TempPathFactory|_basetemp",
    ),
    "pluggy": ("pluggy._tracing:TagTracer",),
    "pytest-xdist": (
        "xdist.dsession:DSession.__init__|_active_nodes",
        "xdist.dsession:DSession.__init__|_failed_collection_errors",
        "xdist.dsession:DSession.__init__|_failed_nodes_count",
        "xdist.dsession:DSession.__init__|_max_worker_restart",
        "xdist.dsession:DSession.__init__|_session",
        "xdist.dsession:DSession.__init__|_summary_report",
        "xdist.dsession:DSession._clone_node",
        "xdist.dsession:DSession._failed_worker_collectreport",
        "xdist.dsession:DSession._handlefailures",
        "xdist.dsession:DSession.loop_once",
        "xdist.dsession:TerminalDistReporter.__init__|_status",
        "xdist.plugin:_sys_path",
        "xdist.plugin:pytest_xdist_auto_num_workers",
        "xdist.remote:Marker.SHUTDOWN",
        "xdist.remote:Producer",
        "xdist.remote:WorkerInteractor",
        "xdist.remote:getinfodict",
        "xdist.remote:setup_config",
        "xdist.remote:worker_title",
        "xdist.scheduler:EachScheduling.__init__|_removed2pending",
        "xdist.scheduler:LoadScopeScheduling._pending_of",
        "xdist.scheduler:LoadScopeScheduling._reschedule",
        "xdist.scheduler:LoadScopeScheduling._split_scope",
        "xdist.workermanage:NodeManager.setup_nodes",
        "xdist.workermanage:WorkerController.__init__|_down",
    ),
    "execnet": (
        "execnet.gateway:Gateway._initreceive",
        "execnet.gateway_base:Message._types",
        "execnet.gateway_base:Unserializer._read_byte_string",
        "execnet.gateway_base:Unserializer.num2func",
        "execnet.gateway_base:_Serializer",
        "execnet.gateway_base:opcode.PY3STRING",
        "execnet.multi:Group.__init__|_gateways_to_join",
        "execnet.multi:Group._register",
        "execnet.multi:Group._unregister",
    ),
}


def missing() -> str | None:
    """Which private name a library lacks, in words; ``None`` if none is missing."""
    for library, needed in _NEEDED.items():
        for name in needed:
            if not _is_there(name):
                version = LIBRARIES[library].__version__
                return f"{library} {version} has no {name.replace(':', '.').replace('|', ' with ')}"
    return None


def _is_there(name: str) -> bool:
    path, _bar, used = name.partition("|")
    module, _colon, attributes = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError):
        return False
    return not used or used in _names(found)


def _names(found: Any) -> set[str]:
    """The names that a function uses, or that all methods and annotations of a class use."""
    if isinstance(found, type):
        names: set[str] = set()
        for cls in found.__mro__[:-1]:
            names.update(vars(cls), getattr(cls, "__annotations__", ()))
            for value in vars(cls).values():
                names |= _names(getattr(value, "__func__", value)) if callable(value) else set()
        return names
    code = getattr(found, "__code__", None)
    return {*code.co_names, *code.co_varnames} if isinstance(code, CodeType) else set()
