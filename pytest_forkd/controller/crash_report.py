"""The report of a test whose worker died while it ran."""

from __future__ import annotations

import pytest

from pytest_forkd.controller.nodes import ForkdWorkerController

__all__ = ["crash_report"]


def crash_report(nodeid: str, worker: ForkdWorkerController) -> pytest.TestReport:
    """A failed report that says how the worker ended, with all that it left.

    :param nodeid: the test that was running.
    :param worker: its node, whose ``end`` is known.
    """
    lines = [f"worker {worker.gateway.id!r} crashed while running {nodeid!r}"]
    last = worker.last_report
    sections = list(last.sections) if last is not None else []
    end = worker.end
    if end is not None:
        lines.append(f"The worker process died: {end.reason}{_hint(end.reason)}.")
        if end.dump.strip():
            lines += ["", end.dump.rstrip()]
        for stream, text in (("stdout", end.out), ("stderr", end.err)):
            if text:
                sections.append((f"Captured {stream} until the crash", text))
    if last is not None and last.failed:
        lines += ["", f"Before that, its {last.when} failed:", "", last.longreprtext]
    path = nodeid.split("::")[0]
    report = pytest.TestReport(
        nodeid=nodeid,
        location=worker.location or (path, None, path),
        keywords={},
        outcome="failed",
        longrepr="\n".join(lines),
        when="???",  # type: ignore[arg-type]
        sections=sections,
    )
    report.node = worker  # type: ignore[attr-defined]
    return report


def _hint(reason: str) -> str:
    if reason == "signal SIGKILL":
        return " (killed from outside; by the kernel, if the machine ran out of memory)"
    return ""
