"""Looks for child processes and shared memory, which all workers would share."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Container

from pytest_forkd.compat.cpython import reap_subprocesses
from pytest_forkd.parent import processes
from pytest_forkd.parent.watch.findings import Finding

__all__ = ["child_processes", "shared_findings"]


def shared_findings() -> list[Finding]:
    """Look for child processes, and for memory that a fork shares instead of copying it."""
    return [*child_processes(), *_shared_memory()]


def child_processes(known: Container[int] = ()) -> list[Finding]:
    """Children of this process: no worker could wait for them, and all would share them.

    :param known: pids of children that the suite did not start.
    """
    subprocess = sys.modules.get("subprocess")
    if subprocess is not None:
        reap_subprocesses()  # reaps ended children whose Popen object is gone
    findings = []
    for pid in processes.children():
        if pid not in known:
            what = f"process {pid}{_name(pid)} was started, and would be shared by all workers"
            findings.append(Finding(what))
    return findings


def _name(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8") as file:
        return f" ({file.read().strip()})"
    return ""


def _shared_memory() -> list[Finding]:
    """Anonymous shared memory mappings; found on Linux only.

    A mapping of a *file* does not count: under xdist, too, workers that map one file share it.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            lines = [line for line in file if " rw-s " in line and line.endswith(" (deleted)\n")]
    except OSError:
        return []
    findings = []
    for line in lines:  # address, permissions, offset, device, inode, path
        path = line.split(maxsplit=5)[5]
        if os.path.basename(path).startswith("sem."):
            what = "a lock, semaphore or event of multiprocessing exists"
        else:
            what = "shared memory (mmap, or multiprocessing's Value or Array) is mapped"
        finding = Finding(f"{what}, and would be shared by all workers")
        if finding not in findings:
            findings.append(finding)
    return findings
