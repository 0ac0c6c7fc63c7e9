"""The rooms of the package: imports run one way, no file is long, none is in a circle."""

from __future__ import annotations

from pathlib import Path

import pytest_forkd

PACKAGE = Path(pytest_forkd.__file__).parent

#: From the roof to the cellar: a module may import what stands below its room, and its own room.
#: Rooms on one floor do not know each other.
FLOORS = [
    ["plugin", "commands"],
    ["controller"],
    ["forkd", "qemu", "backends.process"],
    ["machines"],
    ["backends.base"],
    ["parent.__main__"],
    ["guest.machine"],
    ["parent.server"],
    ["guest"],
    ["scheduling"],
    ["parent.worker"],
    ["parent.imports"],
    ["parent.watch"],
    ["parent"],
    ["sync"],
    ["channel"],
    ["config", "console", "runtime", "hookspecs"],
    ["compat"],
]
