"""Starting one command so that everything it leaves behind can be found and ended.

In: a command line, a working directory, a time limit in seconds. Out: how long it took on the
wall clock, what processor time its first process took itself, its exit code, the end of its
output. Each command gets a session and process group of its own, and an environment variable,
`BENCHMARK_RUN`, that its descendants inherit: a process that detached itself is found by it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "BENCHMARK_RUN"
UNSET = (
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONUNBUFFERED",
    "PYTEST_ADDOPTS",
    "PYTHONPATH",
    "CI",  # pytest prints more, and forkd keeps no parent
    "BUILD_NUMBER",  # as CI, to pytest
)
TERMINATE_GRACE_S = 3.0  # from SIGTERM to SIGKILL
LINGER_GRACE_S = 2.0  # how long members of the group may outlive their leader unremarked
TAIL_CHARACTERS = 200_000
PF_FORKNOEXEC = 0x40  # of the flags in proc_pid_stat(5); include/linux/sched.h


@dataclass(frozen=True)
class Finished:
    """What came of one command.

    seconds: wall time from just before the start to the reaped end. exit_code: negative for a
    signal. timed_out: it was ended by the time limit. lingered: members of its process group
    outlived it and had to be ended. output: the end of stdout and stderr together.
    cpu_s: user and system time of the started process alone, without its children, in seconds;
    None where the system does not tell.
    """

    seconds: float
    exit_code: int
    timed_out: bool
    lingered: bool
    output: str
    cpu_s: float | None = None


def clean_environment(mark: str, folder: Path, **extra: str) -> dict[str, str]:
    """Return this process's environment without what would change the figures, and marked."""
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return {**kept, MARK: mark, "PWD": str(folder), **extra}


def run(
    command: list[str],
    folder: Path,
    environment: dict[str, str],
    limit_s: float,
    log: Path,
    started: Callable[[int], None] | None = None,
) -> Finished:
    """Run `command` in `folder` to its end or to its time limit; output goes to the file `log`.

    `started` is called with the process id right after the start. The wait itself is a blocking
    one (polling would round the time up); a timer ends the group when the limit is over.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    timed_out = threading.Event()
    with log.open("wb") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

        def give_up() -> None:
            timed_out.set()
            end_group(process.pid)
            end_processes(marked(environment[MARK]))

        timer = threading.Timer(limit_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            if started is not None:
                started(process.pid)
            if hasattr(os, "waitid"):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, not yet reaped
            else:
                process.wait()
            seconds = time.perf_counter() - begin
            cpu_s = own_cpu(process.pid)
            exit_code = process.wait()
        except BaseException:  # such as an interrupt from the keyboard
            process.kill()
            process.wait()  # reaped first: the group would seem alive with it
            end_group(process.pid)
            raise
        finally:
            timer.cancel()
            timer.join()  # where it has fired, until it has ended what there was to end
    lingered = not _group_ends(process.pid, LINGER_GRACE_S)
    if lingered:
        end_group(process.pid)
    text = log.read_bytes().decode(errors="replace")[-TAIL_CHARACTERS:]
    return Finished(seconds, exit_code, timed_out.is_set(), lingered, text, cpu_s)


def own_cpu(pid: int) -> float | None:
    """Return a process's user and system time in seconds, its children's left out.

    Linux tells it of a process that has ended, too, until it is reaped; its clock ticks are of
    10 ms. None where it is not told.
    """
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else None


def has_execed(pid: int) -> bool:
    """Tell whether a process has begun a program of its own, rather than be another's fork."""
    fields = _stat(pid)
    return bool(fields) and not int(fields[6]) & PF_FORKNOEXEC


def _stat(pid: int) -> list[str]:
    """Return the fields of `/proc/PID/stat` after the program's name, none where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def marked(mark: str, known: Iterable[int] = ()) -> list[psutil.Process]:
    """Return the live processes whose environment at their start bore `mark`.

    A mark that ends in `*` is a prefix. Process ids in `known` are passed over.
    """
    skipped = {os.getpid(), *known}
    found = []
    for pid in psutil.pids():
        if pid in skipped:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            value = process.environ().get(MARK, "")
            if value == mark or (mark.endswith("*") and value.startswith(mark[:-1])):
                found.append(process)
    return found


def kept(mark: str) -> set[int]:
    """Return the ids of the processes that bear `mark` and were not started by one that does.

    Between two runs these are the processes that the earlier one has left on purpose: what is
    forked from them is not counted.
    """
    found = {process.pid: process for process in marked(mark)}
    roots = set()
    for pid, process in found.items():
        with contextlib.suppress(psutil.Error):
            if process.ppid() not in found and process.status() != psutil.STATUS_ZOMBIE:
                roots.add(pid)
    return roots


def end_processes(processes: list[psutil.Process]) -> None:
    """End processes in stages: SIGTERM, a grace period, SIGKILL."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=TERMINATE_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=TERMINATE_GRACE_S)


def end_group(group: int) -> None:
    """End a process group in stages: SIGTERM, a grace period, SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
        if _group_ends(group, TERMINATE_GRACE_S):
            return


def _group_ends(group: int, within_s: float) -> bool:
    """Tell whether no process of `group` runs any more, waiting up to `within_s` seconds."""
    end = time.monotonic() + within_s
    while _members(group):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _members(group: int) -> list[int]:
    """Return the ids of the processes of `group` that are alive (a zombie has ended)."""
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(pid) == group and psutil.Process(pid).status() != "zombie":
                members.append(pid)
    return members
