"""Peak memory of a process tree, sampled from `/proc/*/smaps_rollup` (Linux only).

In: the process id of a run's first process, and the mark that its environment bears. Out: in
bytes, the highest sum over the tree of the proportional set size (PSS: a page that k processes
share counts 1/k in each), and at that moment the sum of the private memory (USS: pages that no
other process shares). The highest USS would mislead: before a process forks, all of it is private.
Only runs that are not timed are sampled: reading the page tables of big processes costs time.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil
from processes import marked

INTERVAL_S = 0.05
STOP_LIMIT_S = 10.0
AVAILABLE = Path("/proc/self/smaps_rollup").exists()


@dataclass
class Peak:
    """The sample with the highest PSS, in bytes, and how many samples were taken in all."""

    pss: int = 0
    uss: int = 0
    processes: int = 0
    samples: int = 0


class Sampler:
    """A thread that samples the tree of one run until it is stopped.

    The tree is the first process's descendants and every process that bears the mark: one that
    detached itself is no descendant, yet its memory is part of the price.
    """

    def __init__(self, mark: str) -> None:
        """Prepare to sample the run marked `mark`; processes alive now without it are ignored."""
        self.peak = Peak()
        self._mark = mark
        bearing = {process.pid for process in marked(mark)}
        self._ignored = set(psutil.pids()) - bearing
        self._root = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="memory-sampler", daemon=True)

    def start(self, root: int) -> None:
        """Start sampling; `root` is the process id of the run's first process."""
        self._root = root
        self._thread.start()

    def stop(self) -> Peak:
        """Stop sampling and return the peak."""
        self._stop.set()
        self._thread.join(STOP_LIMIT_S)
        return self.peak

    def _loop(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        pids = {process.pid for process in marked(self._mark, self._ignored)}
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._root)
            pids.add(self._root)
            pids.update(child.pid for child in root.children(recursive=True))
        pss = uss = count = 0
        for pid in pids:
            sizes = rollup(pid)
            if sizes is not None:
                pss += sizes[0]
                uss += sizes[1]
                count += 1
        self.peak.samples += 1
        if pss > self.peak.pss:
            self.peak.pss, self.peak.uss, self.peak.processes = pss, uss, count


def rollup(pid: int) -> tuple[int, int] | None:
    """Return (PSS, USS) of one process in bytes, or None where it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            sizes = dict(_kilobytes(line) for line in lines if line.endswith("kB\n"))
    except OSError:
        return None
    private = sizes.get("Private_Clean", 0) + sizes.get("Private_Dirty", 0)
    return sizes.get("Pss", 0) * 1024, private * 1024


def _kilobytes(line: str) -> tuple[str, int]:
    name, rest = line.split(":", 1)
    return name, int(rest.split()[0])
