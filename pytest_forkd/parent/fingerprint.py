"""A hash of what a parent's state depends on: a run may use only a parent with the same hash.

What the parent has *loaded* is checked file by file when it is used, see
:mod:`pytest_forkd.parent.imports.stamps`. The fingerprint stands for the rest: the interpreter,
what is installed, the environment, and what a process inherits from the one that starts it
(limits, umask, namespaces). Sources: proc_pid_status(5), namespaces(7), getrlimit(2).
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from pytest_forkd import __version__
from pytest_forkd.compat.cpython import interpreter_xoptions
from pytest_forkd.parent.plan import Rewriting
from pytest_forkd.runtime.file_stamps import identity
from pytest_forkd.runtime.site_directories import site_directories

__all__ = ["VOLATILE", "fingerprint", "installed", "that_matter"]

#: Patterns of environment variables that are left out of the fingerprint. Each belongs to a shell,
#: a terminal, a prompt or a session, and differs between them, but no module reads it while it is
#: imported. Tests still see the values of their own run. Keep docs/options.md in step.
VOLATILE = (
    # the shell and its prompt
    *("_", "COLUMNS", "LINES", "OLDPWD", "PWD", "SHLVL", "HISTFILE", "HISTCMD", "LS_COLORS"),
    *("PS[0-4]", "PROMPT", "RPROMPT", "PROMPT_COMMAND", "VIRTUAL_ENV_PROMPT"),
    *("CONDA_PROMPT_MODIFIER", "STARSHIP_*", "P9K_*", "_P9K_*", "POSH_*", "ATUIN_*", "DIRENV_*"),
    # the terminal
    *("WINDOW", "WINDOWID", "WINDOWPATH", "STY", "TMUX", "TMUX_PANE", "ZELLIJ*", "GPG_TTY"),
    *("TERM_PROGRAM", "TERM_PROGRAM_VERSION", "VTE_VERSION", "LC_TERMINAL", "LC_TERMINAL_VERSION"),
    *("ITERM_*", "KITTY_*", "ALACRITTY_*", "WEZTERM_*", "KONSOLE_*", "GNOME_TERMINAL_*", "WT_*"),
    *("GHOSTTY_*", "VSCODE_*", "NVIM*"),
    # the session
    *("SSH_*", "SUDO_COMMAND", "SESSION_MANAGER", "DBUS_SESSION_BUS_ADDRESS", "SECURITYSESSIONID"),
    *("XDG_SESSION_*", "XDG_SEAT", "XDG_SEAT_PATH", "XDG_VTNR", "XDG_ACTIVATION_TOKEN"),
    *("DESKTOP_STARTUP_ID", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "MANAGERPID"),
    *("*_SESSION_ID", "*_SESSION_KEY", "*_SESSION_UID"),
    # pytest's own, for a run
    *("PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTEST_VERSION"),
)
#: The fields of ``/proc/self/status`` that a fork inherits.
_STATUS_FIELDS = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "CapEff", "Seccomp")


def fingerprint(
    project: str,
    preload: Iterable[str],
    path: Iterable[str],
    environ: Mapping[str, str],
    ignored: Iterable[str] = (),
    rewriting: Rewriting | None = None,
) -> str:
    """The fingerprint of a parent that this process would start, as 20 hexadecimal digits.

    :param project: the suite's root directory and its ini file.
    :param preload: modules that the user has asked for.
    :param path: where modules are looked for first.
    :param environ: the environment.
    :param ignored: more patterns of variables to leave out. A pattern with ``!`` in front keeps a
        variable in, whatever other pattern matches it.
    :param rewriting: which modules have their assertions rewritten.
    """
    state: dict[str, Any] = {
        "version": __version__,
        "project": project,
        "preload": list(preload),
        "rewriting": None if rewriting is None else asdict(rewriting),
        "path": [os.path.abspath(entry) for entry in path],
        "python": [sys.version, sys.executable, sys.prefix, sys.base_prefix, list(sys.flags)],
        "xoptions": sorted(f"{key}={value}" for key, value in interpreter_xoptions().items()),
        "warnoptions": sys.warnoptions,
        "interpreter": identity(os.path.realpath(sys.executable)),
        "environ": that_matter(environ, ignored),
        "installed": installed(),
        "process": _process(),
    }
    text = json.dumps(state, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def that_matter(environ: Mapping[str, str], ignored: Iterable[str]) -> list[tuple[str, str]]:
    """The environment variables that are part of the :func:`fingerprint`, sorted by name."""
    ignored = list(ignored)
    matter = _matcher(pattern[1:] for pattern in ignored if pattern.startswith("!"))
    volatile = _matcher([*VOLATILE, *(p for p in ignored if not p.startswith("!"))])
    return sorted(item for item in environ.items() if matter(item[0]) or not volatile(item[0]))


def _matcher(patterns: Iterable[str]) -> Callable[[str], object]:
    """A function that tells whether a name matches one of the patterns.

    Most patterns are a plain name, prefix or suffix, which is quicker to check than fnmatch.
    """
    names, starts, ends, others = set(), [], [], []
    for pattern in patterns:
        plain = pattern.strip("*")
        if any(special in plain for special in "*?["):
            others.append(pattern)
        elif plain == pattern:
            names.add(pattern)
        elif pattern == plain + "*":
            starts.append(plain)
        elif pattern == "*" + plain:
            ends.append(plain)
        else:
            others.append(pattern)
    first, last = tuple(starts), tuple(ends)
    return lambda name: (
        name in names
        or name.startswith(first)
        or name.endswith(last)
        or any(fnmatch.fnmatchcase(name, pattern) for pattern in others)
    )


def installed() -> list[Any]:
    """Each installed distribution, with the time of its record, and every ``.pth`` file."""
    found: list[Any] = []
    for folder in sorted(site_directories()):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".dist-info"):
                    found.append([entry.path, identity(os.path.join(entry.path, "RECORD"))])
                elif entry.name.endswith((".pth", ".egg-info", ".egg-link")):
                    found.append([entry.path, identity(entry.path)])
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
