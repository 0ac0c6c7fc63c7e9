"""Control messages: what is sent arrives, whatever the kernel does to it on its way."""

from __future__ import annotations

import json
import os
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_forkd.channel import frames as frames_module
from pytest_forkd.channel.frames import (
    MAX_FRAME_BYTES,
    DescriptorsLost,
    FrameError,
    FrameSocket,
    peer_uid,
)
from tests.unit import no_longer_than, property_based

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=5)


@contextmanager
def connected() -> Iterator[tuple[socket.socket, FrameSocket]]:
    """A plain socket, and the frames at its other end."""
    ours, theirs = socket.socketpair()
    frames = FrameSocket(theirs)
    with ours, no_longer_than(10):
        try:
            yield ours, frames
        finally:
            frames.close()


@contextmanager
def new_files(count: int) -> Iterator[list[int]]:
    """Descriptors that can be told apart by their inodes."""
    with ExitStack() as stack:
        fds = []
        for _ in range(count):
            fd = os.memfd_create("test") if hasattr(os, "memfd_create") else os.pipe()[0]
            stack.callback(os.close, fd)
            fds.append(fd)
        yield fds


def inodes(fds: list[int]) -> list[int]:
    return [os.fstat(fd).st_ino for fd in fds]


def frame(payload: bytes, fds: int = 0, length: int | None = None) -> bytes:
    return struct.pack("!II", len(payload) if length is None else length, fds) + payload


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """``data`` in pieces, cut at ``places`` (modulo its length)."""
    at = sorted({place % len(data) for place in places} - {0}) if data else []
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


@property_based
@given(messages=st.lists(json_objects, max_size=5), places=st.lists(st.integers(0), max_size=12))
def test_messages_survive_any_chunking(messages: list[dict[str, Any]], places: list[int]) -> None:
    data = b"".join(frame(json.dumps(message).encode()) for message in messages)
    with connected() as (sock, frames):
        found = []
        for piece in cut(data, places):
            sock.sendall(piece)
            found += [got.message for got in frames.read_available()]
        assert found == messages
        assert frames.read_available() == []
        assert not frames.eof
        sock.close()
        assert frames.read_available() == []
        assert frames.eof


@property_based
@given(
    parts=st.lists(
        st.tuples(json_objects, st.integers(0, 5), st.lists(st.integers(0), max_size=4)),
        max_size=4,
    )
)
def test_descriptors_arrive_with_their_messages_whatever_the_chunking(
    parts: list[tuple[dict[str, Any], int, list[int]]],
) -> None:
    with connected() as (sock, frames), new_files(sum(count for _, count, _ in parts)) as files:
        left = list(files)
        found = []
        for message, count, places in parts:
            own = [left.pop(0) for _ in range(count)]
            first, *rest = cut(frame(json.dumps(message).encode(), count), places)
            socket.send_fds(sock, [first], own)
            found += frames.read_available()
            for piece in rest:
                sock.sendall(piece)
                found += frames.read_available()
        assert [got.message for got in found] == [message for message, _, _ in parts]
        assert [len(got.fds) for got in found] == [count for _, count, _ in parts]
        arrived = [fd for got in found for fd in got.fds]
        assert inodes(arrived) == inodes(files)
        assert not any(os.get_inheritable(fd) for fd in arrived)
        for fd in arrived:
            os.close(fd)


@property_based
@given(message=json_objects, count=st.integers(0, 3))
def test_what_one_end_sends_the_other_receives(message: dict[str, Any], count: int) -> None:
    with connected() as (sock, frames), new_files(count) as files:
        FrameSocket(sock).send(message, files)
        got = frames.receive(5)
        assert got.message == message
        assert inodes(got.fds) == inodes(files)
        for fd in got.fds:
            os.close(fd)


def test_a_message_larger_than_any_socket_buffer_arrives_with_its_descriptors() -> None:
    message = {"text": "x" * 5_000_000}
    with connected() as (sock, frames), new_files(2) as files:
        sender = threading.Thread(target=FrameSocket(sock).send, args=[message, files])
        sender.start()
        got = frames.receive(30)
        sender.join()
        assert got.message == message
        assert inodes(got.fds) == inodes(files)
        for fd in got.fds:
            os.close(fd)


@pytest.mark.parametrize("size", [64 * 1024, 256 * 1024])
def test_a_message_of_just_the_size_that_is_read_at_once_is_waited_for_no_longer(
    size: int,
) -> None:
    message = {"text": "x" * (size - 8 - len('{"text":""}'))}
    with connected() as (sock, frames):
        sender = threading.Thread(target=FrameSocket(sock).send, args=[message])
        sender.start()
        assert frames.receive(30).message == message
        sender.join()
        assert frames.read_available() == []


def test_receive_gives_messages_one_by_one_and_then_waits_or_ends() -> None:
    with connected() as (sock, frames):
        sock.sendall(frame(b'{"n": 1}') + frame(b'{"n": 2}') + frame(b'{"n": 3}')[:-1])
        assert frames.receive(5).message == {"n": 1}
        assert frames.receive(5).message == {"n": 2}
        with pytest.raises(TimeoutError):
            frames.receive(0.01)
        sock.close()
        with pytest.raises(EOFError):
            frames.receive(5)


def test_what_came_before_the_end_is_still_given() -> None:
    with connected() as (sock, frames):
        sock.sendall(frame(b'{"n": 1}'))
        sock.close()
        assert [got.message for got in frames.read_available()] == [{"n": 1}]


BAD = {
    "too long": frame(b"", length=MAX_FRAME_BYTES + 1),
    "much too long": b"\xff" * 8,
    "too many descriptors": frame(b"{}", fds=17),
    "descriptors that did not come": frame(b"{}", fds=1),
    "not JSON": frame(b"{"),
    "nothing": frame(b""),
    "not UTF-8": frame(b'{"\xff": 1}'),
    "a list": frame(b"[]"),
    "a number": frame(b"1"),
    "no number": frame(b"NaN"),
    "a pickle": frame(b"\x80\x04]\x94."),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_frame_is_an_error(name: str) -> None:
    with connected() as (sock, frames):
        sock.sendall(BAD[name])
        with pytest.raises(FrameError):
            frames.read_available()


def test_json_that_is_nested_too_deeply_is_a_bad_frame() -> None:
    """The parser gives up on it by an exception of its own."""
    with connected() as (sock, frames):
        sock.sendall(frame(b'{"a":' + b"[" * 40_000 + b"]" * 40_000 + b"}"))
        with pytest.raises(FrameError):
            frames.receive(5)


@property_based
@given(st.binary(max_size=64))
def test_junk_is_an_error_or_not_yet_a_frame(data: bytes) -> None:
    with connected() as (sock, frames):
        sock.sendall(data)
        with suppress(FrameError):
            assert all(isinstance(got.message, dict) for got in frames.read_available())


def test_descriptors_that_nobody_took_are_closed_with_the_socket() -> None:
    read, write = os.pipe()
    with connected() as (sock, frames):
        sender = FrameSocket(sock)
        sender.send({"n": 1}, [])
        sender.send({"n": 2}, [write])
        socket.send_fds(sock, [frame(b"{}", 1)[:4]], [write])
        os.close(write)
        assert frames.receive(5).message == {"n": 1}
        os.set_blocking(read, False)
        with pytest.raises(BlockingIOError):
            os.read(read, 1)  # the other end is still open, twice
    assert os.read(read, 1) == b""
    os.close(read)


def test_a_frame_whose_descriptors_find_no_room_is_told_and_the_others_arrive() -> None:
    """Where no more files may be open, the kernel drops the descriptors, and says nothing else."""
    with connected() as (ours, frames), new_files(2) as fds:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        sender = FrameSocket(ours)
        sender.send({"before": 1})
        sender.send({"with": 2}, fds)
        sender.send({"after": 3})
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(fds) + 1, hard))
        try:
            with ExitStack() as stack:
                with suppress(OSError):
                    while True:
                        stack.callback(os.close, os.dup(fds[0]))
                with pytest.raises(DescriptorsLost, match="open files") as caught:
                    frames.read_available()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.message == {"with": 2}
        assert [frame.message for frame in frames.read_available()] == [{"before": 1}, {"after": 3}]


def test_nothing_follows_half_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that does not read in time sees the end, not another frame as the rest of this."""
    monkeypatch.setattr(frames_module, "SEND_TIMEOUT", 0.1)
    with connected() as (sock, peer):
        sender = FrameSocket(sock)
        with pytest.raises(TimeoutError, match=r"not read what it was sent for 0\.1 seconds"):
            sender.send({"text": "x" * 5_000_000})
        with pytest.raises(EOFError):
            peer.receive(5)
        with pytest.raises(TimeoutError, match="not read"):
            sender.send({"n": 1})
        assert peer.eof


def test_the_peer_s_user_is_known() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_uid(ours) in (os.getuid(), None)
