"""One virtual machine: booted, saved, or restored from what was saved.

Its memory is a file. A booted machine maps the file shared; together with the saved state of the
devices it makes a *snapshot*. A clone maps it privately, copy-on-write. QEMU gets descriptors of
connected sockets, so that no socket has a path:

* a virtio port, the stream to what runs in the guest (:attr:`VirtualMachine.channel`),
* the console, of which the last lines are kept,
* QMP, by which the machine is saved and restored (QEMU: docs/interop/qmp-spec.rst).
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_forkd.backends.base import BackendError
from pytest_forkd.qemu.qmp import Qmp, QmpError

__all__ = ["CHANNEL_PORT", "Hardware", "Snapshot", "VirtualMachine", "VmError"]

#: The name of the virtio port, as in /sys/class/virtio-ports/*/name.
CHANNEL_PORT = "pytest-forkd"
#: Seconds to read or write the state of a machine's devices, which is less than a megabyte.
_MIGRATE_TIMEOUT = 60.0
#: Seconds for QEMU to end after SIGKILL.
_KILL_TIMEOUT = 10.0
_CONSOLE_BYTES = 16 * 1024
#: Text of a kernel panic, and prefixes of console lines that do not come from the guest.
_PANIC = "Kernel panic"
_COMPLAINTS = ("qemu-system", "setpriv:")
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
#: Devices that are not needed are switched off, since that makes restoring faster.
_MACHINE = "q35,usb=off,vmport=off,smbus=off,sata=off,memory-backend=ram"
#: ``panic=-1``: QEMU ends when the guest's kernel panics. ``tsc=reliable``: in a restored guest the
#: time has jumped, and otherwise the kernel would stop using the TSC as its clock.
_APPEND = "console=ttyS0 quiet reboot=t panic=-1 tsc=reliable no_timer_check"


class VmError(BackendError):
    """A machine cannot be started, saved or restored; the message says why."""


@dataclass(frozen=True)
class Hardware:
    """A machine's hardware; a snapshot can be restored only with the same hardware.

    :ivar qemu: path of the program.
    :ivar accelerator: ``kvm`` or ``tcg``.
    :ivar memory: the guest's memory, in MiB.
    :ivar cpus: how many CPUs the guest has.
    :ivar root: the image of the root file system; it is attached read-only.
    :ivar network: whether the guest reaches the network, by QEMU's user-mode networking.
    """

    qemu: str
    accelerator: str
    memory: int
    cpus: int
    root: Path
    network: bool = False

    def arguments(self, memory: str, *, share: bool) -> list[str]:
        """QEMU's command line, without the arguments that belong to a single machine.

        :param memory: the path of the memory file.
        :param share: whether the guest's writes go to that file.
        """
        size = f"{self.memory}M"
        backend = f"memory-backend-file,id=ram,size={size},mem-path={memory}"
        arguments = [self.qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        arguments += ["-sandbox", _SANDBOX, "-accel", self.accelerator, "-M", _MACHINE]
        arguments += ["-cpu", "host" if self.accelerator == "kvm" else "max"]
        arguments += ["-smp", str(self.cpus), "-m", size]
        arguments += ["-object", f"{backend},share={'on' if share else 'off'}"]
        arguments += ["-object", "rng-random,id=rng,filename=/dev/urandom"]
        arguments += ["-device", "virtio-rng-pci,rng=rng"]
        image = str(self.root).replace(",", ",,")
        arguments += [
            "-drive",
            f"if=none,id=root,format=raw,readonly=on,file.locking=off,file={image}",
        ]
        arguments += ["-device", "virtio-blk-pci,drive=root"]
        if self.network:
            arguments += ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"]
        return arguments


@dataclass
class Snapshot:
    """A saved machine.

    :ivar memory: the path of its memory file; if that is a memfd, its path in ``/proc/self/fd``.
    :ivar state: the same for the state of its devices.
    :ivar fds: the descriptors that these paths refer to.
    """

    memory: str
    state: str
    fds: tuple[int, ...] = ()

    @classmethod
    def in_folder(cls, folder: Path) -> Snapshot:
        """A snapshot on disk, in ``folder``."""
        return cls(str(folder / "memory"), str(folder / "state"))

    @classmethod
    def in_memory(cls, size: int) -> Snapshot:
        """Make room for a snapshot in memory that nobody else can open; :meth:`close` frees it.

        :param size: the size of the machine's memory, in MiB.
        """
        memory, state = os.memfd_create("forkd-memory"), os.memfd_create("forkd-state")
        os.ftruncate(memory, size << 20)
        return cls(f"/proc/self/fd/{memory}", f"/proc/self/fd/{state}", (memory, state))

    def create(self, size: int) -> None:
        """Make the files of a snapshot on disk.

        :param size: the size of the machine's memory, in MiB.
        :raises OSError: if there is no room for them.
        """
        for path in (self.memory, self.state):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            if path == self.memory:
                os.truncate(fd, size << 20)
            os.close(fd)

    def copy_to(self, other: Snapshot) -> None:
        """Copy the memory, without its holes; a restored machine reads the original's state.

        :raises OSError: if there is no room.
        """
        source = os.open(self.memory, os.O_RDONLY | os.O_CLOEXEC)
        target = os.open(other.memory, os.O_RDWR | os.O_CLOEXEC)
        try:
            end, at = os.fstat(source).st_size, 0
            while at < end:
                try:
                    at = os.lseek(source, at, os.SEEK_DATA)
                except OSError:
                    break  # only a hole is left
                hole = os.lseek(source, at, os.SEEK_HOLE)
                while at < hole:
                    data = os.pread(source, min(hole - at, 8 << 20), at)
                    at += os.pwrite(target, data, at)
        finally:
            os.close(source)
            os.close(target)

    def close(self) -> None:
        """Free a snapshot in memory; one on disk stays."""
        for fd in self.fds:
            os.close(fd)
        self.fds = ()


@functools.cache
def _dying_with_us() -> tuple[str, ...]:
    """The start of a command line that makes a program end when the thread that started it ends.

    prctl(2), PR_SET_PDEATHSIG. The setting survives exec. A program sets it, since running code in
    a fork of a process with threads may hang.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is not None:
        return (setpriv, "--pdeathsig", "KILL", "--")
    code = "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,9);os.execvp(sys.argv[1],sys.argv[1:])"
    return (sys.executable, "-ISc", code)


@dataclass
class VirtualMachine:
    """A running QEMU; :meth:`kill` ends it.

    Start it from a thread that lives at least as long: QEMU dies with that thread.

    :ivar channel: the stream to the guest; the caller has to close it after :meth:`kill`.
    """

    process: subprocess.Popen[bytes]
    channel: socket.socket
    _qmp: Qmp
    _console: socket.socket
    _tail: bytearray = field(default_factory=bytearray)

    @classmethod
    def boot(
        cls, hardware: Hardware, memory: Snapshot, kernel: Path, initrd: Sequence[Path], append: str
    ) -> VirtualMachine:
        """Start a machine with a kernel; it can be saved as ``memory``.

        :param initrd: the archives that make up the initramfs, in order.
        :param append: words for the kernel's command line.
        :raises VmError: if QEMU cannot be started.
        """
        joined = os.memfd_create("forkd-initrd")
        try:
            with open(joined, "wb", closefd=False) as file:
                for path in initrd:
                    data = path.read_bytes()
                    file.write(data + bytes(-len(data) % 4))
            more = ["-kernel", str(kernel), "-initrd", f"/proc/self/fd/{joined}"]
            more += ["-append", f"{_APPEND} {append}".rstrip()]
            machine = cls._start(hardware, memory, [joined], more, share=True)
        finally:
            os.close(joined)
        machine._qmp.send("qmp_capabilities")
        return machine

    @classmethod
    def restore(
        cls, hardware: Hardware, snapshot: Snapshot, *, own: Snapshot | None = None
    ) -> VirtualMachine:
        """Begin to restore a machine; :meth:`wait_restored` waits for the end of that.

        :param own: a copy of the snapshot's memory for the machine to write to, so that it can be
            saved there; without it, what the machine writes is lost when it ends.
        :raises VmError: if QEMU cannot be started.
        """
        try:
            # Opened again for each clone, since clones must not share its file position.
            state = os.open(snapshot.state, os.O_RDONLY | os.O_CLOEXEC)
            size = os.stat(snapshot.memory).st_size
        except OSError as exc:
            raise VmError(f"the snapshot cannot be read: {exc}") from exc
        if size != hardware.memory << 20:
            # QEMU would fill up missing memory with zeros.
            os.close(state)
            raise VmError(f"the snapshot is damaged: its memory has {size >> 20} MiB")
        try:
            memory = own or snapshot
            machine = cls._start(
                hardware, memory, [state], ["-incoming", "defer"], share=own is not None
            )
        finally:
            os.close(state)
        machine._qmp.send("qmp_capabilities")
        machine._qmp.ignore_shared()
        machine._qmp.send("migrate-incoming", uri=f"fd:{state}")
        return machine

    @classmethod
    def _start(
        cls,
        hardware: Hardware,
        memory: Snapshot,
        fds: Sequence[int],
        more: list[str],
        *,
        share: bool,
    ) -> VirtualMachine:
        pairs = {name: socket.socketpair() for name in ("channel", "console", "qmp")}
        arguments = hardware.arguments(memory.memory, share=share)
        for name, (_ours, theirs) in pairs.items():
            arguments += ["-chardev", f"socket,id={name},fd={theirs.fileno()}"]
        arguments += ["-mon", "chardev=qmp,mode=control", "-serial", "chardev:console"]
        arguments += ["-device", "virtio-serial-pci,id=serial,max_ports=2"]
        arguments += [
            "-device",
            f"virtserialport,bus=serial.0,nr=1,chardev=channel,name={CHANNEL_PORT}",
        ]
        inherited = [*fds, *memory.fds, *(theirs.fileno() for _ours, theirs in pairs.values())]
        try:
            process = subprocess.Popen(
                [*_dying_with_us(), *arguments, *more],
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                stdout=pairs["console"][1].fileno(),
                stderr=pairs["console"][1].fileno(),
                start_new_session=True,  # Ctrl-C must not reach it
            )
        except OSError as exc:
            for ours, _theirs in pairs.values():
                ours.close()
            raise VmError(f"{hardware.qemu} cannot be started: {exc.strerror}.") from exc
        finally:
            for _ours, theirs in pairs.values():
                theirs.close()
        pairs["console"][0].setblocking(False)
        return cls(process, pairs["channel"][0], Qmp(pairs["qmp"][0]), pairs["console"][0])

    def wait_restored(self, timeout: float = _MIGRATE_TIMEOUT) -> None:
        """Wait until a restored machine runs.

        :param timeout: in seconds.
        :raises VmError: if it does not.
        """
        with self._explained("restored"):
            self._qmp.wait_for("RESUME", timeout)

    def save(self, snapshot: Snapshot) -> None:
        """Save the state of the devices; the memory is in its file already. Kill the machine then.

        :param snapshot: the snapshot whose memory file the machine writes to.
        :raises VmError: if that fails.
        """
        fd = os.open(snapshot.state, os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC)
        try:
            with self._explained("saved"):
                self._qmp.ignore_shared()
                self._qmp.send("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
                self._qmp.send_fd("state", fd)
                # Do not stop it before: a machine that is saved stopped is restored stopped.
                self._qmp.migrate("fd:state", _MIGRATE_TIMEOUT)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (QmpError, OSError, EOFError) as exc:
            if isinstance(exc, (EOFError, ConnectionError)):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(1)
            reason = str(exc) if self.process.poll() is None else self.describe_end()
            raise VmError(f"a virtual machine could not be {what}: {reason}") from exc

    @property
    def console_fd(self) -> int:
        """The descriptor of the console, for a poller."""
        return self._console.fileno()

    def read_console(self) -> None:
        """Read what the guest has written to its console, without waiting."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while data := self._console.recv(65536):
                self._tail += data
                del self._tail[:-_CONSOLE_BYTES]

    def console(self, lines: int = 1000) -> str:
        """The last lines of the guest's console, and QEMU's error messages.

        After a kernel panic, these are the lines around the panic message, since a long stack trace
        follows it.
        """
        self.read_console()
        text = self._tail.decode("utf-8", "replace").replace("\r", "")
        printable = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
        found = printable.strip().splitlines()
        panic = next((i for i, line in enumerate(found) if _PANIC in line), None)
        if panic is not None:
            found = found[: panic + lines // 2]
        return "\n".join(found[-lines:])

    def describe_end(self) -> str:
        """How QEMU ended, in words."""
        status = self.process.poll()
        if status is None:
            return "QEMU is still running"
        console = self.console()
        if _PANIC in console:
            return "the guest's kernel panicked"
        complaints = [line for line in console.splitlines() if line.startswith(_COMPLAINTS)]
        if status and complaints:
            return complaints[0]
        if status < 0:
            if -status == signal.SIGBUS:
                return "there is no space left for the guest's memory (QEMU was ended by SIGBUS)"
            with contextlib.suppress(ValueError):
                return f"QEMU was ended by {signal.Signals(-status).name}"
        return (
            "the guest switched itself off" if status == 0 else f"QEMU ended with status {status}"
        )

    def kill(self) -> None:
        """End QEMU at once; safe to call twice. The console can still be read."""
        if self.process.poll() is None:
            self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_KILL_TIMEOUT)
        self._qmp.close()
        self.read_console()
        if self._console.fileno() >= 0:
            self._console.close()
