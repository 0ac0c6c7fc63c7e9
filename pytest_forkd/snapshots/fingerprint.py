"""What a parent's state depends on, as a hash: only a parent with the same one may be used.

What the parent has *loaded* is checked file by file when it is used, see
:mod:`pytest_forkd.parent.stamps`. The fingerprint stands for the rest: the interpreter, what is
installed, the environment, and what a process inherits from the one that starts it (limits,
umask, namespaces). Sources: proc_pid_status(5), namespaces(7), getrlimit(2).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from pytest_forkd import __version__
from pytest_forkd.snapshots.plan import Rewriting

__all__ = ["VOLATILE", "fingerprint", "installed"]

#: Environment variables that change from one shell, or one run, to the next, and that nothing
#: looks at while it is imported. A run's own values reach its tests all the same.
VOLATILE = frozenset(
    {
        "COLUMNS",
        "LINES",
        "OLDPWD",
        "PWD",
        "PYTEST_ADDOPTS",
        "PYTEST_CURRENT_TEST",
        "PYTEST_VERSION",
        "SHLVL",
        "SSH_CLIENT",
        "SSH_CONNECTION",
        "SSH_TTY",
        "TERM_SESSION_ID",
        "TMUX_PANE",
        "WINDOWID",
        "XDG_SESSION_ID",
        "_",
    }
)
#: What of ``/proc/self/status`` a fork inherits.
_STATUS_FIELDS = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "CapEff", "Seccomp")


def fingerprint(
    project: str,
    preload: Iterable[str],
    path: Iterable[str],
    environ: Mapping[str, str],
    rewriting: Rewriting | None = None,
) -> str:
    """The fingerprint of a parent that this process would start, as 20 hexadecimal digits.

    :param project: the suite's root directory and its ini file.
    :param preload: modules that the user has asked for.
    :param path: where modules are looked for first.
    :param environ: the environment.
    :param rewriting: whose assertions are rewritten.
    """
    state: dict[str, Any] = {
        "version": __version__,
        "project": project,
        "preload": list(preload),
        "rewriting": None if rewriting is None else asdict(rewriting),
        "path": [os.path.abspath(entry) for entry in path],
        "python": [sys.version, sys.executable, sys.prefix, sys.base_prefix, list(sys.flags)],
        "xoptions": sorted(f"{key}={value}" for key, value in sys._xoptions.items()),
        "warnoptions": sys.warnoptions,
        "interpreter": _stamp(os.path.realpath(sys.executable)),
        "environ": sorted(item for item in environ.items() if item[0] not in VOLATILE),
        "installed": installed(),
        "process": _process(),
    }
    text = json.dumps(state, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def _stamp(path: str) -> list[int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [stat.st_mtime_ns, stat.st_size, stat.st_ino]


def installed() -> list[Any]:
    """Each installed distribution, with the time of its record, and every ``.pth`` file."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    folders.update(
        entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))
    )
    found: list[Any] = []
    for folder in sorted(folders):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".dist-info"):
                    found.append([entry.path, _stamp(os.path.join(entry.path, "RECORD"))])
                elif entry.name.endswith((".pth", ".egg-info", ".egg-link")):
                    found.append([entry.path, _stamp(entry.path)])
    return sorted(found, key=lambda item: str(item[0]))


def _process() -> dict[str, Any]:
    """What a process inherits beside its environment."""
    state: dict[str, Any] = {"nice": os.getpriority(os.PRIO_PROCESS, 0)}
    with contextlib.suppress(ImportError):
        import resource

        state["limits"] = {
            name: resource.getrlimit(getattr(resource, name))
            for name in dir(resource)
            if name.startswith("RLIMIT_")
        }
    if hasattr(os, "sched_getaffinity"):
        state["affinity"] = sorted(os.sched_getaffinity(0))
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in _STATUS_FIELDS:
                state[name] = value.split()
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="utf-8") as file:
        state["cgroup"] = file.read()
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir("/proc/self/ns")):
            with contextlib.suppress(OSError):
                state[f"ns/{name}"] = os.readlink(f"/proc/self/ns/{name}")
    return state
