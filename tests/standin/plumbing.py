"""What the processes of a guest have open, and the same anew for its clones.

Sources: proc_pid_fd(5), proc_pid_fdinfo(5), sock_diag(7).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Entry", "NotClonable", "Plumbing", "UnixSocket", "open_files", "unix_sockets"]

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_DUMP = 4, 20, 0x301
_UDIAG_SHOW_NAME, _UDIAG_SHOW_PEER = 1, 4
_UNIX_DIAG_NAME, _UNIX_DIAG_PEER = 0, 2
_NLMSG_DONE, _NLMSG_ERROR = 3, 2
_LISTENING = 10
_ACCESS_MODE = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
#: Bytes of a file that was deleted, or that has no name, which are copied.
_MAX_COPY = 1 << 26


class NotClonable(Exception):
    """The stand-in's trick does not reach so far; the message says what it met."""


@dataclass(frozen=True)
class UnixSocket:
    """A socket as the kernel lists it."""

    kind: int
    state: int
    path: str | None
    peer: int


@dataclass
class Entry:
    """An open descriptor of a process."""

    fd: int
    target: str
    flags: int
    position: int
    inode: int
    watched: list[list[int]] = field(default_factory=list)
    pid: int = -1

    @property
    def inheritable(self) -> bool:
        """Whether it is passed on to another program."""
        return not self.flags & os.O_CLOEXEC


def unix_sockets() -> dict[int, UnixSocket]:
    """All UNIX sockets of this network namespace, by inode."""
    found: dict[int, UnixSocket] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as link:
        show = _UDIAG_SHOW_NAME | _UDIAG_SHOW_PEER
        request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, show, 0, 0)
        head = struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_DUMP, 1, 0)
        link.send(head + request)
        while True:
            data = link.recv(1 << 17)
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                if kind == _NLMSG_DONE:
                    return found
                if kind == _NLMSG_ERROR:
                    raise NotClonable("the kernel does not list its sockets (unix_diag)")
                _family, sort, state, _pad, inode = struct.unpack_from("=BBBBI", data, 16)
                path, peer = None, 0
                offset = 32
                while offset + 4 <= length:
                    size, name = struct.unpack_from("=HH", data, offset)
                    value = data[offset + 4 : offset + size]
                    if name == _UNIX_DIAG_NAME:
                        path = value.split(b"\0")[0].decode("utf-8", "surrogateescape") or "@"
                    elif name == _UNIX_DIAG_PEER:
                        (peer,) = struct.unpack("=I", value)
                    offset += (size + 3) & ~3
                found[inode] = UnixSocket(sort, state, path, peer)
                data = data[(length + 3) & ~3 :]


def open_files(pid: int, skip: int) -> list[Entry]:
    """What a process that stands still has open.

    :param skip: a descriptor to leave out.
    """
    found = []
    for name in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        if int(name) == skip:
            continue
        path = f"/proc/{pid}/fd/{name}"
        with open(f"/proc/{pid}/fdinfo/{name}", encoding="ascii") as file:
            text = file.read()
        info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        entry = Entry(
            fd=int(name),
            target=os.readlink(path),
            flags=int(info["flags"], 8),
            position=int(info["pos"]),
            inode=os.stat(path).st_ino,
            pid=int(info.get("Pid", -1)),
        )
        for tfd, events in re.findall(r"^tfd: *(\d+) events: *([0-9a-f]+)", text, re.MULTILINE):
            entry.watched.append([int(tfd), int(events, 16)])
        found.append(entry)
    return found


class Plumbing:
    """The descriptors of the processes of one guest, and those for one clone of it.

    :param tables: what each process has open.
    :param own: directories that belong to the guest: what is open there has another file of the
        same name in the clone.
    :param agent: where the agent listens, and where its clone is to listen.
    :param peek: what can be read from sockets of a process, as hexadecimal digits.
    """

    def __init__(
        self,
        tables: dict[int, list[Entry]],
        own: list[str],
        agent: tuple[str, str],
        peek: Callable[[int, list[int]], list[str]],
    ) -> None:
        self.tables = tables
        self.own = own
        self.agent = agent
        self.sockets = unix_sockets()
        self.ends: dict[int, int] = {}  # inode -> descriptor for the clones
        self.pipes: dict[tuple[int, bool], int] = {}  # inode, writable -> the same
        self.copies: dict[int, int] = {}  # inode of a file without a name -> the same
        self.opened: list[int] = []
        self._connect(peek)

    def close(self) -> None:
        """Close what was made; the clones have theirs."""
        for fd in self.opened:
            os.close(fd)
        self.opened.clear()

    def _connect(self, peek: Callable[[int, list[int]], list[str]]) -> None:
        holders: dict[int, tuple[int, Entry]] = {}
        for pid, table in self.tables.items():
            for entry in table:
                holders.setdefault(entry.inode, (pid, entry))
        for pid, table in self.tables.items():
            for entry in table:
                known = self.sockets.get(entry.inode)
                if entry.target.startswith("socket:") and known is not None:
                    if known.state != _LISTENING and entry.inode not in self.ends:
                        self._make_pair(entry.inode, known, holders, peek)
                elif entry.target.startswith("pipe:"):
                    self._make_pipe(pid, entry)

    def _make_pair(
        self,
        inode: int,
        known: UnixSocket,
        holders: dict[int, tuple[int, Entry]],
        peek: Callable[[int, list[int]], list[str]],
    ) -> None:
        pair = socket.socketpair(socket.AF_UNIX, known.kind)
        there = known.peer if known.peer in holders else 0
        for mine, other, end in ((inode, pair[1], pair[0]), (there, pair[0], pair[1])):
            if mine:
                pid, entry = holders[mine]
                [waiting] = peek(pid, [entry.fd])
                if waiting:
                    other.send(bytes.fromhex(waiting))
                end.setblocking(not entry.flags & os.O_NONBLOCK)
        self.ends[inode] = pair[0].detach()
        self.opened.append(self.ends[inode])
        if there:
            self.ends[there] = pair[1].detach()
            self.opened.append(self.ends[there])
        else:
            pair[1].close()  # who was there has gone, or is none of this guest

    def _make_pipe(self, pid: int, entry: Entry) -> None:
        key = (entry.inode, bool(entry.flags & _ACCESS_MODE))
        if key in self.pipes:
            return
        kinds = {
            bool(each.flags & _ACCESS_MODE)
            for table in self.tables.values()
            for each in table
            if each.inode == entry.inode
        }
        if len(kinds) == 1:
            return  # its other end is outside: shared, as the console is
        read, write = os.pipe()
        self.opened += [read, write]
        self.pipes[entry.inode, False], self.pipes[entry.inode, True] = read, write
        again = os.open(f"/proc/{pid}/fd/{entry.fd}", os.O_RDWR | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            waiting = os.read(again, 1 << 16)
            os.write(again, waiting)
            os.write(write, waiting)
        os.close(again)
        os.set_blocking(read, not entry.flags & os.O_NONBLOCK)

    def plan(self, pid: int, fds: list[int]) -> dict[str, Any]:
        """What the clone of a process has to put in place.

        :param fds: descriptors that go with the plan; more are added.
        """
        given: list[list[Any]] = []
        listeners: list[list[Any]] = []
        files: list[list[Any]] = []
        selectors: list[list[Any]] = []
        for entry in self.tables[pid]:
            new = self._given(pid, entry)
            if new is not None:
                if new not in fds:
                    fds.append(new)
                given.append([entry.fd, fds.index(new), entry.inheritable])
            elif entry.target.startswith("socket:") and entry.inode in self.sockets:
                listeners.append([entry.fd, self._address(pid, entry), 128])
            elif entry.target == "anon_inode:[eventpoll]":
                known = {each.fd for each in self.tables[pid]}
                watched = [each for each in entry.watched if each[0] in known]
                selectors.append([entry.fd, watched])
            elif entry.target.startswith("/") and not entry.target.startswith(("/dev/", "/proc/")):
                self._file(entry, files)
            elif entry.target.startswith("anon_inode:") and entry.target != "anon_inode:[pidfd]":
                raise NotClonable(f"process {pid} has {entry.target} open")
        return {
            "given": given,
            "listeners": listeners,
            "files": files,
            "selectors": selectors,
        }

    def _given(self, pid: int, entry: Entry) -> int | None:
        if entry.target.startswith("socket:"):
            return self.ends.get(entry.inode)
        if entry.target.startswith("pipe:"):
            return self.pipes.get((entry.inode, bool(entry.flags & _ACCESS_MODE)))
        if entry.target.startswith("/memfd:") or entry.target.endswith(" (deleted)"):
            return self._copy(pid, entry)
        return None

    def _address(self, pid: int, entry: Entry) -> str:
        path = self.sockets[entry.inode].path or ""
        if path == self.agent[0]:
            return self.agent[1]
        if not path.startswith("/"):
            path = os.path.normpath(os.path.join(os.readlink(f"/proc/{pid}/cwd"), path))
        if not self._is_own(path):
            raise NotClonable(f"process {pid} listens on {path}, which is not the guest's own")
        return path

    def _is_own(self, path: str) -> bool:
        return any(path == each or path.startswith(each + "/") for each in self.own)

    def _file(self, entry: Entry, files: list[list[Any]]) -> None:
        if self._is_own(entry.target):
            files.append([entry.fd, entry.target, entry.flags, entry.position])
        elif not entry.flags & _ACCESS_MODE:
            # Read only, and the host's: the same file, but a position of its own.
            files.append([entry.fd, None, entry.flags, entry.position])

    def _copy(self, pid: int, entry: Entry) -> int:
        if entry.inode not in self.copies:
            fd = os.memfd_create("standin")
            self.opened.append(fd)
            source = os.open(f"/proc/{pid}/fd/{entry.fd}", os.O_RDONLY)
            if not stat.S_ISREG(os.fstat(source).st_mode) or os.fstat(source).st_size > _MAX_COPY:
                raise NotClonable(f"process {pid} has {entry.target} open")
            offset = 0
            while data := os.pread(source, 1 << 20, offset):
                offset += os.pwrite(fd, data, offset)
            os.close(source)
            os.lseek(fd, entry.position, os.SEEK_SET)
            self.copies[entry.inode] = fd
        return self.copies[entry.inode]
