"""Workers in small virtual machines that QEMU restores from a snapshot on this machine."""

from __future__ import annotations

import contextlib
import itertools
import math
import select
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
from typing import Any

from pytest_forkd.backends.base import BackendError, RunRequest
from pytest_forkd.channel.event_queue import EventQueue
from pytest_forkd.channel.exec_stream import StreamError
from pytest_forkd.channel.mux import OPEN, data_frames
from pytest_forkd.machines.backend import Host, MachinesBackend, Place
from pytest_forkd.machines.machine import Machine, MachineError
from pytest_forkd.machines.working_tree import ProjectSource, SyncSettings
from pytest_forkd.parent.plan import Plan
from pytest_forkd.qemu.accelerator import Accelerator
from pytest_forkd.qemu.progress import ProgressBar
from pytest_forkd.qemu.store import Artifact, ArtifactStore
from pytest_forkd.qemu.vm import Snapshot, VirtualMachine, VmError
from pytest_forkd.qemu.warmup import DEFAULT_MEMORY, Base, check_memory, find_base, warm_snapshot

__all__ = ["QemuBackend", "QemuSettings"]

#: Seconds for QEMU to end once its guest's stream has ended.
_END_LIMIT = 3.0
#: Seconds that the report header waits for image and snapshot; the run needs these to begin anyway.
_HEADER_LIMIT = 0.5
_CHUNK = 256 * 1024
#: Seconds for a guest to read what is sent to it.
_SEND_LIMIT = 60.0
_CONSOLE_LINES = 12
#: Files that are built in a working tree, ignored by git, and needed to import the project.
_BUILT = ("*.egg-info", "*.so", "_version.py", "version.py")
#: The kernel's message when the OOM killer has killed a process.
_OUT_OF_MEMORY = "Out of memory: Killed process"


@dataclass(frozen=True)
class QemuSettings:
    """What the guests are like.

    :ivar memory: MiB of memory of each guest.
    :ivar cpus: how many CPUs each guest has.
    :ivar kernel: the kernel to boot, if one was asked for.
    :ivar include: paths and commands to add to the image.
    :ivar network: whether guests reach the network, through QEMU's user-mode networking.
    :ivar environ: patterns of the variables that guests get besides the usual ones.
    """

    memory: int = DEFAULT_MEMORY
    cpus: int = 1
    kernel: str | None = None
    include: tuple[str, ...] = ()
    network: bool = False
    environ: tuple[str, ...] = ()


class QemuLink:
    """The stream to a guest: a connected socket. While it waits, it also reads the console.

    :param vm: the machine; restored, but perhaps not running yet.
    """

    def __init__(self, vm: VirtualMachine) -> None:
        self._vm = vm
        self._sock = vm.channel
        self._closed = False
        try:
            self._sock.settimeout(_SEND_LIMIT)
            self._sock.sendall(data_frames(OPEN, b""))
        except OSError as exc:
            raise StreamError(self._end()) from exc
        self._poller = select.poll()
        self._poller.register(self._sock, select.POLLIN)
        self._poller.register(vm.console_fd, select.POLLIN)

    def send(self, data: bytes) -> None:
        """Send all of it; raises StreamError."""
        try:
            self._sock.sendall(data)
        except TimeoutError as exc:
            raise StreamError(
                f"the guest has not read what was sent to it within {_SEND_LIMIT:g} seconds"
            ) from exc
        except OSError as exc:
            raise StreamError(self._end()) from exc

    def receive(self, timeout: float | None = None) -> bytes:
        """Wait for at least one byte; raises StreamError.

        :param timeout: seconds after which it returns nothing; ``None`` means no limit.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not self._closed:
            left = deadline - time.monotonic()
            if left < 0:
                return b""
            ready = dict(self._poller.poll(min(1.0, left) * 1000))
            if self._vm.console_fd in ready:
                self._vm.read_console()
                if ready[self._vm.console_fd] & (select.POLLHUP | select.POLLERR):
                    self._poller.unregister(self._vm.console_fd)
            if self._sock.fileno() in ready:
                try:
                    data = self._sock.recv(_CHUNK)
                except TimeoutError:
                    continue
                except OSError as exc:
                    raise StreamError(self._end()) from exc
                if not data:
                    raise StreamError(self._end())
                return data
        raise StreamError("the stream was closed")

    def confirm(self) -> None:
        """Do nothing: a guest need not wait for confirmations on a socket."""

    def close(self) -> None:
        """Make both methods end soon."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(2)

    def _end(self) -> str:
        """Why the stream has ended, with the last lines of the console."""
        with contextlib.suppress(Exception):
            self._vm.process.wait(_END_LIMIT)
        return f"{self._vm.describe_end()}{_last_lines(self._vm)}"


class QemuHost(Host):
    """This machine.

    :param base: QEMU and what it runs.
    :param snapshot: the entry of the warm snapshot.
    :param branchable: returns whether machines made from the snapshot will be branched.
    """

    name = "this machine"

    def __init__(self, base: Base, snapshot: Artifact, branchable: Callable[[], bool]) -> None:
        self._base = base
        self._snapshot = Snapshot.in_folder(snapshot.path)
        self._rebuild = f"To have the snapshot built anew: pytest-forkd image rm {snapshot.name}"
        self._branchable = branchable
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._closed = False
        self._vms: dict[str, VirtualMachine] = {}
        #: The memory of machines that can be saved, by name.
        self._own: dict[str, Snapshot] = {}
        self._branches: list[Snapshot] = []

    def make(self, count: int, branch: object | None) -> list[Place]:
        source = branch if isinstance(branch, Snapshot) else self._snapshot
        places: list[Place] = []
        try:
            own = branch is None and self._branchable()
            while len(places) < count:
                places.append(self._make_one(source, own=own))
        except (BackendError, OSError) as exc:
            for place in places:
                place.remove()
            raise MachineError(f"{exc}\n{self._rebuild}") from exc
        return places

    def _make_one(self, source: Snapshot, *, own: bool) -> Place:
        name = f"guest {next(self._numbers)}"
        memory = None
        if own:
            memory = Snapshot.in_memory(self._base.hardware.memory)
            source.copy_to(memory)
        try:
            vm = VirtualMachine.restore(self._base.hardware, source, own=memory)
        except BaseException:
            if memory is not None:
                memory.close()
            raise
        with self._lock:
            self._vms[name] = vm
            if memory is not None:
                self._own[name] = memory
            closed = self._closed
        if closed:
            self._remove(name)
            raise MachineError("the run has ended")
        return Place(name, lambda: self._connect(vm), lambda: self._remove(name))

    def _connect(self, vm: VirtualMachine) -> QemuLink:
        try:
            vm.wait_restored()
            return QemuLink(vm)
        except (VmError, StreamError) as exc:
            raise MachineError(f"{exc}\n{self._rebuild}") from exc

    def vm(self, name: str) -> VirtualMachine | None:
        """The machine of that name, if it is still there."""
        return self._vms.get(name)

    def branch(self, place: Place) -> object:
        with self._lock:
            vm, memory = self._vms.get(place.name), self._own.pop(place.name, None)
            if memory is not None:
                self._branches.append(memory)
        if vm is None or memory is None:
            raise MachineError("it cannot be branched")
        try:
            vm.save(memory)
        except VmError as exc:
            raise MachineError(str(exc)) from exc
        vm.kill()  # it must not run on: its clones map its memory now
        return memory

    def alive(self) -> bool:
        return not self._closed

    def _remove(self, name: str) -> None:
        with self._lock:
            vm, memory = self._vms.pop(name, None), self._own.pop(name, None)
        if vm is not None:
            vm.kill()
            vm.channel.close()
        if memory is not None:
            memory.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            names = list(self._vms)
            branches, self._branches = self._branches, []
        for name in names:
            self._remove(name)
        for branch in branches:
            branch.close()


class QemuBackend(MachinesBackend):
    """The ``qemu`` backend.

    :param settings: what the guests are like.
    :param sync: which part of the working tree they get.
    :param plan: what their parent is to import.
    """

    name = "qemu"
    #: A branch takes about this long; and if every guest collects, all processors are busy.
    min_shared_collection_seconds = 0.5
    rebuild = "pytest-forkd image prune --older-than 0s"

    def __init__(self, settings: QemuSettings, sync: SyncSettings, plan: Plan) -> None:
        # A snapshot is never stale, since the image's fingerprint covers what is installed.
        include = (*sync.include, *_BUILT)
        super().__init__(ProjectSource(replace(sync, allow_stale=True, include=include)))
        self._settings = settings
        self._plan = plan
        self._store = ArtifactStore.find()
        self._progress = ProgressBar()
        self._held = contextlib.ExitStack()
        self._preparation: Future[tuple[Base, Artifact]] | None = None
        self._preparer = ThreadPoolExecutor(1, "forkd-qemu")
        self._stopping = threading.Event()
        self._host: QemuHost | None = None

    def start(self) -> None:
        super().start()
        self._preparation = self._preparer.submit(self._prepare)

    def _note(self, stage: str, part: float) -> None:
        """Show the progress of a build; raises an exception to end it if the run has ended."""
        if self._stopping.is_set():
            raise BackendError("the run has ended")
        self._progress.set(stage, part)

    def _prepare(self) -> tuple[Base, Artifact]:
        settings = self._settings
        base = find_base(
            self._store,
            memory=settings.memory,
            cpus=settings.cpus,
            kernel=settings.kernel,
            include=settings.include,
            network=settings.network,
            progress=self._note,
        )
        self._held.enter_context(base.image.held())
        plan = self._plan
        if plan.scan is not None:
            # Scan here, since the guest does not have the project yet.
            from pytest_forkd.parent.third_party import named_modules

            plan = replace(plan, learnt=[*plan.learnt, *named_modules(plan.scan, [], plan.exclude)])
        snapshot = warm_snapshot(self._store, base, plan, self._note)
        self._held.enter_context(snapshot.held())
        return base, snapshot

    def begin(self, request: RunRequest, events: EventQueue, listener: Any) -> None:
        check_memory(len(request.nodes), self._settings.memory)
        super().begin(request, events, listener)

    def _find_hosts(self) -> list[Host]:
        if self._host is None:
            assert self._preparation is not None
            base, snapshot = self._wait_for(self._preparation)
            self._explain_emulation(base.accelerator)
            self._host = QemuHost(base, snapshot, lambda: self._level == "collection")
        return [self._host]

    def _wait_for(self, preparation: Future[tuple[Base, Artifact]]) -> tuple[Base, Artifact]:
        """Wait with a progress bar; every stage has a limit of its own."""
        try:
            while True:
                try:
                    return preparation.result(timeout=0.1)
                except FutureTimeout:
                    if preparation.done():
                        raise
                    self._progress.draw()
        finally:
            self._progress.end()

    def describe_parent(self) -> str:
        if self._preparation is None:
            return ""
        try:
            base, _snapshot = self._preparation.result(timeout=_HEADER_LIMIT)
        except (FutureTimeout, BackendError, OSError):
            return ""  # still being built, or failed, which _find_hosts() will report
        seconds = self._progress.seconds
        made = "kept snapshot" if seconds is None else f"snapshot built in {seconds:.0f} s"
        return f"{made}, KVM" if base.accelerator.name == "kvm" else f"{made}, emulated"

    def _explain_emulation(self, accelerator: Accelerator) -> None:
        """Explain once how slow emulation is, and how to avoid it."""
        if accelerator.name == "kvm":
            return
        try:
            with open(self._store.directory / "emulation-explained", "x"):
                pass
        except OSError:
            return  # already explained, or that cannot be recorded
        self._progress.say(
            f"forkd: guests are emulated, since {accelerator.why_not}.\n"
            "forkd: emulated, Python runs about 10 times slower, imports 20 times and numerical "
            "code 100 times and more.\n"
        )

    def _environ_patterns(self) -> list[str]:
        return list(self._settings.environ)

    def _set_up(self, machine: Machine, hello: dict[str, Any]) -> None:
        failures = hello["preload_failures"]
        if failures:
            name, why = next(iter(failures.items()))
            raise MachineError(f"the guest's parent could not import {name!r}: {why}")

    def _worker_said(self, entry: Any, name: str, value: dict[str, Any]) -> None:
        if name == "exit" and value["status"] & 0x7F == signal.SIGKILL:
            # The guest cannot tell who sent SIGKILL; the OOM killer reports it on the console.
            assert self._host is not None
            vm = self._host.vm(entry.place.name)
            console = "" if vm is None else vm.console()
            if (at := console.rfind(_OUT_OF_MEMORY)) >= 0:
                line = console[at:].partition("\n")[0]
                value = {**value, "err": f"{value['err']}\nThe guest's kernel: {line}\n"}
            elif value["reason"] is not None and vm is not None:
                value = {**value, "err": f"{value['err']}{_last_lines(vm)}\n"}
        super()._worker_said(entry, name, value)

    def _all_hosts(self) -> list[Host]:
        return [] if self._host is None else [self._host]

    def close(self) -> None:
        if self._closed:
            return
        self._stopping.set()
        super().close()
        # A build in progress cleans up after itself; at most, mke2fs has to be waited for.
        self._preparer.shutdown(wait=True, cancel_futures=True)
        self._held.close()


def _last_lines(vm: VirtualMachine) -> str:
    """The last lines of a guest's console, to be appended to a message; may be empty."""
    console = vm.console(_CONSOLE_LINES)
    return f"\nThe last lines of its console:\n{console}" if console else ""
