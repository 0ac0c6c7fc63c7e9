"""Finds the directories on the path that hold installed distributions, not the project's code."""

from __future__ import annotations

import contextlib
import os
import sys

__all__ = ["site_directories", "site_prefixes"]

#: Cached results by path and working directory: the search reads directories.
_found: dict[tuple[str, ...], tuple[str, ...]] = {}


def site_directories() -> tuple[str, ...]:
    """The directories that installers write to, as they are named on the path.

    :returns: those called ``site-packages`` or ``dist-packages``, and
        targets of ``pip install --target``: directories that hold the record of a distribution, and
        do not contain the working directory. Packages in editable installs are elsewhere; only
        their records are in these directories.
    """
    key = (os.getcwd() if os.path.isdir(".") else "", *sys.path)
    found = _found.get(key)
    if found is None:
        folders: dict[str, None] = {}
        own = os.path.join(os.path.dirname(os.__file__), "")  # the standard library
        for entry in sys.path:
            if entry.endswith(("site-packages", "dist-packages")) or (
                not os.path.join(entry, "").startswith(own) and _is_target(entry, key[0])
            ):
                folders[entry] = None
        found = _found[key] = tuple(folders)
    return found


def _is_target(entry: str, here: str) -> bool:
    """Whether this directory looks like a target of ``pip install --target``."""
    if not os.path.isabs(entry) or os.path.join(here, "").startswith(os.path.join(entry, "")):
        return False
    with contextlib.suppress(OSError), os.scandir(entry) as children:
        return any(
            child.name.endswith(".dist-info") and os.path.exists(os.path.join(child.path, "RECORD"))
            for child in children
        )
    return False


def site_prefixes() -> tuple[str, ...]:
    """The same directories, each with a final separator, for ``str.startswith()``."""
    return tuple(os.path.join(folder, "") for folder in site_directories())
