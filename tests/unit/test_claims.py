"""Each item is begun by exactly one side, whatever the two do at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_forkd.channel.claims import Claims, claims_file
from tests.unit import in_a_fork, property_based

COUNT = 40


@contextmanager
def claims() -> Iterator[Claims]:
    mine = Claims(claims_file())
    try:
        yield mine
    finally:
        mine.close()


def other_side(mine: Claims, work: Callable[[Claims], bytes]) -> tuple[int, int]:
    """Fork a process that works on a copy of ``mine`` and then lives until its input is closed.

    :returns: where :func:`answer` finds what ``work`` returned, and what keeps the process alive.
    """
    out, result = os.pipe()
    wait, go = os.pipe()
    if os.fork() == 0:
        try:
            os.close(go)
            os.write(result, b"." + work(mine))
            os.read(wait, 1)
        finally:
            os._exit(0)
    os.close(result)
    os.close(wait)
    return out, go


def answer(out: int) -> bytes:
    return os.read(out, 1000)[1:]


def end(out: int, go: int) -> None:
    """Let the other side end, and wait for that."""
    os.close(go)
    os.wait()
    os.close(out)


@settings(parent=property_based, max_examples=15)
@given(
    order=st.permutations(range(COUNT)),
    start=st.booleans(),
)
def test_each_index_goes_to_exactly_one_side(order: list[int], start: bool) -> None:
    """One goes through them from the front, as a worker does, one takes them back in any order."""
    with claims() as mine:
        gate, opened = os.pipe()

        def work(theirs: Claims) -> bytes:
            os.read(gate, 1)
            return bytes(index for index in range(COUNT) if theirs.claim(index))

        out, go = other_side(mine, work)
        if start:
            os.write(opened, b"x")
        first = [index for index in order[: COUNT // 2] if mine.claim(index)]
        if not start:
            os.write(opened, b"x")
        rest = [index for index in order[COUNT // 2 :] if mine.claim(index)]
        theirs = list(answer(out))
        end(out, go)
        os.close(gate)
        os.close(opened)
        assert sorted([*first, *rest, *theirs]) == list(range(COUNT))


def test_what_one_side_has_the_other_cannot_claim() -> None:
    with claims() as mine:
        assert mine.claim(3)
        assert mine.claim(3), "it is ours already"
        out, go = other_side(mine, lambda theirs: bytes([theirs.claim(3), theirs.claim(4)]))
        assert answer(out) == bytes([False, True])
        assert not mine.claim(4)
        end(out, go)


def test_claims_end_with_their_process_however_it_ends() -> None:
    with claims() as mine:

        def claim_and_die() -> None:
            mine.claim(0)
            os.abort()

        assert in_a_fork(claim_and_die) < 0
        assert mine.claim(0)


def test_a_process_that_a_test_starts_neither_has_nor_releases_its_worker_s_claims() -> None:
    with claims() as mine:
        assert mine.claim(0)

        def check() -> None:
            assert not mine.claim(0)
            mine.close()

        assert in_a_fork(check) == 0
        out, go = other_side(mine, lambda theirs: bytes([theirs.claim(0)]))
        assert answer(out) == bytes([False])
        end(out, go)


def test_a_claims_file_has_no_name_and_can_be_closed_twice() -> None:
    mine = Claims(claims_file())
    assert os.fstat(mine.fd).st_nlink == 0
    assert not os.get_inheritable(mine.fd)
    fd = mine.fd
    mine.close()
    mine.close()
    with pytest.raises(OSError):
        os.fstat(fd)
