"""Batched output: the same bytes in the same order, and never late by more than was said."""

from __future__ import annotations

import contextlib
import io
import time
from types import SimpleNamespace
from typing import Any

import pytest
from _pytest._io import TerminalWriter
from hypothesis import given
from hypothesis import strategies as st

from pytest_forkd.controller.batched_terminal import LATENCY, BatchedFile, batched_terminal
from tests.unit import property_based


class Stream(io.StringIO):
    """A text file with a buffer; ``out`` is what has left it."""

    tty = False

    def __init__(self) -> None:
        super().__init__()
        self.out = ""
        self.flushes = 0

    def flush(self) -> None:
        self.out = self.getvalue()
        self.flushes += 1

    def isatty(self) -> bool:
        return self.tty


def reporter_of(stream: Stream) -> Any:
    return SimpleNamespace(_tw=TerminalWriter(stream))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.text("ab\n", min_size=1, max_size=3)),
        st.tuples(st.just("direct"), st.text("cd\n", min_size=1, max_size=3)),
        st.tuples(st.just("flush"), st.just("")),
        st.tuples(st.just("wait"), st.just("")),
        st.tuples(st.just("sleep"), st.sampled_from([LATENCY / 4, LATENCY, 1.0])),
    ),
    max_size=30,
)


@property_based
@given(steps)
def test_the_bytes_and_their_order_stay_whoever_writes(steps: list[tuple[str, Any]]) -> None:
    stream = Stream()
    now = 0.0
    file = BatchedFile(stream, lambda: now)
    written = ""
    asked: float | None = None  # when a flush was first asked for that has not happened
    for step, value in steps:
        if step in ("write", "direct"):
            (file if step == "write" else stream).write(value)
            written += value
            if step == "write" and asked is None:
                asked = now
        elif step == "sleep":
            now += value
        elif step == "wait":
            late = asked is not None and now - asked >= LATENCY
            left = file.flush_in_time()
            if asked is None:
                assert left is None
            elif late:
                assert left is None
                assert stream.out == written
                asked = None
            else:
                assert left is not None
                assert 0 < left <= LATENCY
        else:
            late = asked is not None and now - asked >= LATENCY
            asked = now if asked is None else asked
            file.flush()
            if late:
                assert stream.out == written
                asked = None
    assert stream.getvalue() == written
    assert written.startswith(stream.out)


def test_many_reports_are_flushed_together_and_nothing_waits_in_vain() -> None:
    stream = Stream()
    reporter = reporter_of(stream)
    with batched_terminal(reporter) as flush:
        assert flush is not None
        for _ in range(100):
            reporter._tw.write(".", flush=True)
        assert stream.flushes <= 1  # more only if this took 50 ms
        while (left := flush()) is not None:
            time.sleep(left)
        assert stream.out == "." * 100
        flushes = stream.flushes
        assert flush() is None
        assert stream.flushes == flushes, "nothing was written since"
        reporter._tw.write("F", flush=True)
    assert stream.out == "." * 100 + "F"
    assert reporter._tw._file is stream


@pytest.mark.parametrize("exception", [KeyboardInterrupt, RuntimeError])
def test_everything_is_written_and_live_again_after_an_exception(
    exception: type[BaseException],
) -> None:
    stream = Stream()
    reporter = reporter_of(stream)
    with contextlib.suppress(exception), batched_terminal(reporter):
        reporter._tw.write("x", flush=True)
        raise exception
    assert stream.out == "x"
    reporter._tw.write("y", flush=True)
    assert stream.out == "xy"


def test_a_terminal_stays_live() -> None:
    stream = Stream()
    stream.tty = True
    reporter = reporter_of(stream)
    with batched_terminal(reporter) as flush:
        assert flush is None
        reporter._tw.write("x", flush=True)
        assert stream.out == "x"


@pytest.mark.parametrize("reporter", [None, object(), SimpleNamespace(_tw=object())])
def test_what_has_no_writer_is_left_alone(reporter: object) -> None:
    with batched_terminal(reporter) as flush:
        assert flush is None
