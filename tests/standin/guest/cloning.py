"""Cloning of running processes, in the processes themselves: how the stand-in "snapshots" a guest.

A virtual machine's monitor copies a guest from outside. Nothing like it is to be had for plain
processes, so here they take part: on a signal, a process stops in its main thread, wherever it
is, and connects to the daemon. When all processes of a guest stand still, the daemon has each of
them fork. The forks get files, sockets, pipes and selectors of their own under the same numbers,
connected among each other as the originals are (see ``tests/standin/plumbing.py``), move to the new
guest's directories, and go on where the originals were stopped. Code that is cloned neither
knows of this nor helps.

Two things need pretence. A fork reseeds the generator of ``random``, a restored machine does not:
its state is put back. And the forks are children of the daemon, with new process ids, where the
original's parent remembers the original: in a clone, ``os.waitpid``, ``os.kill`` and
``os.pidfd_open`` know the remembered ids.

Standard library only; it is loaded into every Python of a guest.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

CLONE_SIGNAL = signal.SIGRTMIN + 7
#: Seconds for the daemon to decide what a process that stands still is to do.
_PATIENCE = 120.0
_MAX_FDS = 250
_CLONE_NEWNS = 0x00020000
_MS_BIND, _MNT_DETACH = 0x1000, 2
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 1, 36, 37
_CREATION_FLAGS = os.O_CREAT | os.O_EXCL | os.O_TRUNC

_libc = ctypes.CDLL(None, use_errno=True)
_real_waitpid, _real_kill = os.waitpid, os.kill
_real_pidfd_open = getattr(os, "pidfd_open", None)

_control_path = ""
#: What has to be true before this process can be cloned; raises RuntimeError if it is not.
get_ready: Any = lambda: None  # noqa: E731
#: A process id that was remembered before the clone was made -> the clone's.
_pids: dict[int, int] = {}
#: Those of them that are this process's children, by the remembered id.
_children: dict[int, int] = {}
_exits = ""


def install(control: str) -> None:
    """Let this process, and its forks, be cloned.

    :param control: the daemon's socket.
    """
    global _control_path
    _control_path = control
    signal.signal(CLONE_SIGNAL, _freeze)


def send(sock: socket.socket, message: Any, fds: Any = ()) -> None:
    """Send a message and descriptors."""
    import json

    data = json.dumps(message).encode()
    socket.send_fds(sock, [struct.pack("!I", len(data))], list(fds))
    sock.sendall(data)


def receive(sock: socket.socket) -> tuple[Any, list[int]]:
    """Receive what :func:`send` has sent; raises EOFError at the end."""
    import json

    head, fds, _flags, _address = socket.recv_fds(sock, 4, _MAX_FDS)
    while 0 < len(head) < 4:
        head += sock.recv(4 - len(head))
    if not head:
        raise EOFError
    (left,) = struct.unpack("!I", head)
    data = bytearray()
    while len(data) < left:
        chunk = sock.recv(left - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return json.loads(bytes(data)), fds


def call(name: str, *args: Any) -> None:
    """Call a function of the C library that returns -1 on error."""
    if getattr(_libc, name)(*args) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def bind_mounts(mounts: list[list[str]]) -> None:
    """Put directories of this guest in the places where all guests see them."""
    for source, target in mounts:
        call("mount", source.encode(), target.encode(), None, _MS_BIND, None)


def _freeze(signum: int, frame: object) -> None:
    signal.signal(CLONE_SIGNAL, signal.SIG_IGN)  # it is sent until it is heeded
    try:
        _heed()
    finally:
        signal.signal(CLONE_SIGNAL, _freeze)


def _heed() -> None:
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        control.connect(_control_path)
        get_ready()
        tasks = len(os.listdir("/proc/self/task"))
        if tasks != 1:
            raise RuntimeError(f"it has {tasks} threads")
    except RuntimeError as exc:
        send(control, {"pid": os.getpid(), "error": str(exc)})
        control.close()
        return
    except OSError:
        return  # nobody is waiting
    subreaper = ctypes.c_int()
    _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(subreaper), 0, 0, 0)
    # So that the daemon, and no process of the original guest, adopts the forks.
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    send(control, {"pid": os.getpid(), "control": control.fileno()})
    if not _wanted(control):
        control.close()
    else:
        _stand_still(control)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, subreaper.value, 0, 0, 0)


def _wanted(control: socket.socket) -> bool:
    """Whether the daemon waits for this process; the signal may come once more than was needed."""
    control.settimeout(2.0)
    try:
        receive(control)
    except (EOFError, OSError):
        return False
    control.settimeout(None)
    return True


def _stand_still(control: socket.socket) -> None:
    """Do what the daemon says until it says to go on; in the original and in its clones."""
    while True:
        try:
            message, fds = receive(control)
        except (EOFError, OSError):
            os._exit(1)  # the daemon has gone
        if "peek" in message:
            send(control, {"peeked": [_peek(fd) for fd in message["peek"]]})
        elif "fork" in message:
            control = _fork(control, message["fork"], fds)
        elif "finish" in message:
            _finish(message["finish"], fds)
            send(control, {"finished": True})
        elif "resume" in message:
            control.close()
            return


def _peek(fd: int) -> str:
    """What can be read from a socket, as hexadecimal digits."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            return sock.recv(1 << 20, socket.MSG_PEEK | socket.MSG_DONTWAIT).hex()
        except OSError:
            return ""


def _fork(control: socket.socket, plan: Any, fds: list[int]) -> socket.socket:
    """Fork twice, so that the daemon adopts the clone; returns in both, with the connection."""
    random = sys.modules.get("random")
    state = random.getstate() if random is not None else None
    first = os.fork()
    if first:
        _real_waitpid(first, 0)
        for fd in fds:
            os.close(fd)
        send(control, {"forked": True})
        return control
    middle = os.getpid()
    if os.fork():
        os._exit(0)
    try:
        control.close()
        control = socket.socket(fileno=fds[0])
        while os.getppid() == middle:
            time.sleep(0.0005)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != plan["daemon"]:
            os._exit(1)
        _replace(plan, fds)
        if random is not None:
            random.setstate(state)
        send(control, {"cloned": os.getpid()})
    except BaseException as exc:
        send(control, {"failed": f"{type(exc).__name__}: {exc}"})
        os._exit(1)
    return control


def _replace(plan: Any, fds: list[int]) -> None:
    """Give this fresh clone its own directories and descriptors."""
    if plan["mounts"] is not None:
        call("unshare", _CLONE_NEWNS)
        for _source, target in plan["mounts"]:
            # Not on top of it: that would vanish with the original's directory.
            call("umount2", target.encode(), _MNT_DETACH)
        bind_mounts(plan["mounts"])
    else:
        call("setns", fds[plan["namespace"]], _CLONE_NEWNS)
    os.chdir(plan["cwd"])
    for fd, index, inheritable in plan["given"]:
        os.dup2(fds[index], fd, inheritable)
    for fd, path, backlog in plan["listeners"]:
        blocking = os.get_blocking(fd)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if os.path.exists(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen(backlog)
        listener.setblocking(blocking)
        _move(listener.detach(), fd)
    for fd, path, flags, position in plan["files"]:
        new = os.open(path or f"/proc/self/fd/{fd}", flags & ~_CREATION_FLAGS)
        if position:
            os.lseek(new, position, os.SEEK_SET)
        _move(new, fd)
    for fd, watched in plan["selectors"]:
        poller = select.epoll()
        for each, events in watched:
            poller.register(each, events)
        new = os.dup(poller.fileno())
        poller.close()
        _move(new, fd)
    for fd in fds[1:]:
        os.close(fd)


def _move(new: int, fd: int) -> None:
    os.dup2(new, fd, os.get_inheritable(fd))
    os.close(new)


def _finish(news: Any, fds: list[int]) -> None:
    """Learn the process ids of the other clones."""
    global _exits
    _exits = news["exits"]
    changed = {int(old): new for old, new in news["pids"].items()}
    for remembered, actual in list(_pids.items()):
        if actual in changed:
            _pids[remembered] = changed[actual]
    _pids.update(changed)
    # By the id that this process knows them by: it is older than the latest one of a clone.
    known = {actual: old for old, actual in _children.items()}
    _children.clear()
    _children.update({known.get(each, each): changed[each] for each in news["children"]})
    for fd, index in news["pidfds"]:
        os.dup2(fds[index], fd, os.get_inheritable(fd))
    for fd in fds:
        os.close(fd)
    os.waitpid, os.kill = _waitpid, _kill
    if _real_pidfd_open is not None:
        os.pidfd_open = _pidfd_open


def _status(actual: int) -> int | None:
    """How a clone has ended: the daemon has waited for it, and written that down."""
    try:
        with open(os.path.join(_exits, str(actual)), encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _waitpid(pid: int, options: int) -> tuple[int, int]:
    while True:
        for old in [pid] if pid in _children else list(_children) if pid == -1 else []:
            status = _status(_children[old])
            if status is not None:
                del _children[old]
                return old, status
        if pid not in _children:
            try:
                found, status = _real_waitpid(pid, options if not _children else os.WNOHANG)
            except ChildProcessError:
                if pid != -1 or not _children:
                    raise
                found = status = 0
            if found or not _children:
                return found, status
        if options & os.WNOHANG:
            return 0, 0
        time.sleep(0.005)


def _kill(pid: int, signum: int) -> None:
    _real_kill(_pids.get(pid, pid), signum)


def _pidfd_open(pid: int, flags: int = 0) -> int:
    assert _real_pidfd_open is not None
    return int(_real_pidfd_open(_pids.get(pid, pid), flags))
