"""When a kept parent is to end, and how long a run waits for one."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_forkd.parent.kept import answers, keeping
from pytest_forkd.parent.kept.answers import NotAnswering, receive
from pytest_forkd.parent.kept.keeping import Keeping, memory_is_low
from pytest_forkd.runtime.process_tree import Look

GROUP = "/sys/fs/cgroup/a/memory."


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What ``/proc`` and ``/sys`` hold; a test changes it."""
    found = {"/proc/meminfo": "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 500 kB\n"}

    def fake_open(path: str, *_args: Any, **_more: Any) -> io.StringIO:
        if path not in found:
            raise FileNotFoundError(path)
        return io.StringIO(found[path])

    monkeypatch.setattr(keeping, "open", fake_open, raising=False)
    return found


@pytest.mark.parametrize(("available", "low"), [(500, False), (50, False), (49, True)])
def test_a_parent_gives_way_when_the_machine_is_short_of_memory(
    files: dict[str, str], available: int, low: bool
) -> None:
    files["/proc/meminfo"] = f"MemTotal: 1000 kB\nMemAvailable: {available} kB\n"
    assert memory_is_low() is low
    assert Keeping(None, 60.0, "").reason_to_end() == ("memory is low" if low else None)


@pytest.mark.parametrize(
    ("current", "cached", "most", "low"),
    [
        (900, 0, "1000", False),
        (951, 0, "1000", True),
        (951, 100, "1000", False),
        (951, 0, "max", False),
    ],
)
def test_a_parent_gives_way_when_its_control_group_is(
    files: dict[str, str], current: int, cached: int, most: str, low: bool
) -> None:
    """As in a container; what caches files is not counted, it is given up when it is needed."""
    files["/proc/self/cgroup"] = "1:name=systemd:/b\n0::/a\n"
    files[f"{GROUP}max"] = f"{most}\n"
    files[f"{GROUP}current"] = f"{current}\n"
    files[f"{GROUP}stat"] = f"anon 5\ninactive_file {cached}\n"
    assert memory_is_low() is low


def test_a_parent_ends_with_its_user_s_last_login(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = f"/run/user/{os.getuid()}"
    there = {home}
    monkeypatch.setattr("os.path.isdir", lambda path: path in there)
    parent = Keeping(None, 60.0, "")
    assert parent.reason_to_end() is None
    there.clear()
    assert parent.reason_to_end() == "its user has logged out"
    assert Keeping(None, 60.0, "").reason_to_end() is None, "there is no logind"


def test_a_parent_ends_with_its_suite_or_when_it_is_not_used(
    files: dict[str, str], tmp_path: Path
) -> None:
    assert Keeping(None, 0.0, "").reason_to_end() == "not used for 0 seconds"
    suite = tmp_path / "suite"
    parent = Keeping(None, 60.0, f"{suite}|{suite}/pytest.ini")
    assert parent.reason_to_end() == "the suite's root directory is gone"
    suite.mkdir()
    assert parent.reason_to_end() is None


# -- waiting for one -----------------------------------------------------------------------------


class Waiting:
    """A parent that does not answer, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, look: Callable[[float], Look]) -> None:
        self.now = 0.0
        self._look = look
        monkeypatch.setattr(answers, "time", SimpleNamespace(monotonic=lambda: self.now))

    def receive(self, timeout: float) -> Any:
        self.now += timeout
        raise TimeoutError

    def look(self) -> Look:
        return self._look(self.now)


def looks(state: str, cpu: int = 0) -> Look:
    return Look(state, cpu, parent=1, started="0")


@pytest.mark.parametrize(
    ("look", "state", "reason", "least", "most"),
    [
        pytest.param(lambda now: looks("T"), "ready", "it is stopped", 0.5, 0.7, id="stopped"),
        pytest.param(lambda now: looks("S"), "ready", "it hangs", 1.5, 1.7, id="hung"),
        pytest.param(lambda now: looks("R"), "ready", "it hangs", 10.0, 10.2, id="at work"),
        pytest.param(
            lambda now: looks("S", int(now * 100)), "ready", "it hangs", 10.0, 10.2, id="on and off"
        ),
        pytest.param(
            lambda now: looks("S"), "learning", "it is still importing", 10.0, 10.2, id="learning"
        ),
        pytest.param(
            lambda now: looks("T"), "learning", "it is stopped", 0.5, 0.7, id="stopped learning"
        ),
    ],
)
def test_how_long_a_run_waits_for_a_parent_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
    look: Callable[[float], Look],
    state: str,
    reason: str,
    least: float,
    most: float,
) -> None:
    parent: Any = Waiting(monkeypatch, look)
    with pytest.raises(NotAnswering, match=reason):
        receive(parent, parent, lambda: state)
    assert least <= parent.now <= most


def test_how_long_a_run_waits_for_what_a_user_has_preloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent: Any = Waiting(monkeypatch, lambda now: looks("S"))
    with pytest.raises(TimeoutError, match="no message within 300 seconds") as caught:
        receive(parent, parent, lambda: "preloading")
    assert not isinstance(caught.value, NotAnswering)
    assert 300 <= parent.now <= 301
