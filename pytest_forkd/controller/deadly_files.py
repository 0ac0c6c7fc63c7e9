"""Files whose import has ended the importing process: reported as errors, not imported again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_forkd.backends.base import WorkerEnd
from pytest_forkd.channel.bounds import line as one_line

__all__ = ["DeadlyFiles"]

#: How many such files are tolerated; finding each one costs another collection.
_MAX_FILES = 10


class DeadlyFiles:
    """The deadly files of this run.

    :param root: the suite's root directory; paths are shown relative to it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        #: By path: ``text`` and ``sections`` of the error, see ``RunRequest.deadly``.
        self.known: dict[str, dict[str, Any]] = {}
        self._suspected: set[str] = set()

    def blame(self, end: WorkerEnd) -> str | None:
        """Decide whether a process ended because of the file that it was importing.

        SIGKILL may have come from outside, so a file is blamed for it only the second time.

        :returns: a message for the user; ``None`` if no file is to blame.
        :raises pytest.UsageError: for a conftest, without which nothing can be collected.
        :raises pytest.Session.Interrupted: if there are too many such files.
        """
        path = end.importing
        if not path or path in self.known:
            return None
        if end.reason == "signal SIGKILL" and path not in self._suspected:
            self._suspected.add(path)
            return None
        shown = one_line(path.removeprefix(f"{self._root}/"))
        line = f"The process that was importing {shown} ended with {end.reason}"
        sections = [
            (f"Captured {stream}", text)
            for stream, text in (("stdout", end.out), ("stderr", end.err))
            if text
        ]
        if Path(path).name == "conftest.py":
            left = [f"--- {name} ---\n{text.rstrip()}" for name, text in sections]
            raise pytest.UsageError("\n".join([f"{line}.", end.dump.rstrip(), *left]))
        if len(self.known) >= _MAX_FILES:
            raise pytest.Session.Interrupted(
                f"{line}, as did those that imported {_MAX_FILES} other files"
            )
        text = f"{line}."
        if end.dump.strip():
            text += f"\n\n{end.dump.rstrip()}"
        self.known[path] = {"text": text, "sections": sections}
        return f"the process that was importing {shown} ended with {end.reason}"
