"""What the user asked for, and what is remembered of a suite."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_forkd.controller.settings import parse_workers
from pytest_forkd.controller.suite_memory import Modules, WarmMemory, finding_line
from tests.unit import property_based
from tests.unit.test_frames import json_values


@property_based
@given(st.integers(0, 10**6), st.sampled_from(["", " ", "\t"]))
def test_a_number_of_workers_is_itself(number: int, space: str) -> None:
    assert parse_workers(f"{space}{number}{space}") == number


def test_workers_may_be_as_many_as_there_are_processors() -> None:
    assert parse_workers("auto") == parse_workers(" auto ") == "auto"


@property_based
@given(st.integers(max_value=-1).map(str) | st.text(max_size=8) | st.floats().map(str))
def test_what_is_no_number_of_workers_is_a_value_error(text: str) -> None:
    try:
        number = parse_workers(text)
    except ValueError:
        return
    assert number == "auto" or (isinstance(number, int) and number >= 0)


@pytest.mark.parametrize("text", ["", "-1", "two", "1.5", "0x2", "1e3", "auto2", "None"])
def test_examples_of_what_is_no_number_of_workers(text: str) -> None:
    with pytest.raises(ValueError):
        parse_workers(text)


# -- memory ------------------------------------------------------------------------------------


class Cache(dict[str, Any]):
    """pytest's, as far as it is used: a missing value is the default."""

    def set(self, key: str, value: object) -> None:
        self[key] = value


def memory(cache: Cache | None, **attributes: Any) -> WarmMemory:
    config: Any = SimpleNamespace(
        **{
            "cache": cache,
            "args": ["tests"],
            "inipath": None,
            "pluginmanager": pytest.PytestPluginManager(),
            **attributes,
        }
    )
    return WarmMemory(config)


FINDING = {"what": "a reason", "path": None, "lineno": 0}


def test_a_suite_that_nothing_is_known_of_may_share_its_collection() -> None:
    for cache in (None, Cache()):
        known = memory(cache)
        assert known.recall("auto").level == "collection"
        assert known.recall("imports").level == "imports"
        assert known.recall("collection").level == "collection"
        assert known.recall("auto").modules == Modules()
        assert known.recall("auto").finding is None


def test_what_is_known_of_a_suite_holds_until_something_changes(tmp_path: Path) -> None:
    file, ini = tmp_path / "conftest.py", tmp_path / "pytest.ini"
    file.write_text("1")
    cache = Cache()
    memory(cache, inipath=ini).remember_unsuitable([FINDING], [str(file)])
    assert memory(cache, inipath=ini).recall("auto").level == "imports"
    assert memory(cache, inipath=ini).recall("auto").finding == FINDING
    assert memory(cache, inipath=ini).recall("collection").level == "collection"
    assert memory(cache, inipath=ini, args=["other"]).recall("auto").level == "collection"
    for path, change in (
        (file, lambda: file.write_text("22")),
        (file, lambda: os.utime(file, ns=(1, 1))),
        (file, file.unlink),
        (ini, lambda: ini.write_text("[pytest]")),
    ):
        if not file.exists():
            file.write_text("1")
        memory(cache, inipath=ini).remember_unsuitable([FINDING], [str(file)])
        assert memory(cache, inipath=ini).recall("auto").level == "imports"
        change()
        assert memory(cache, inipath=ini).recall("auto").level == "collection", path


@property_based
@given(
    st.builds(Modules, st.lists(st.text()), st.booleans(), st.dictionaries(st.text(), st.text()))
)
def test_modules_are_remembered(modules: Modules) -> None:
    cache = Cache()
    memory(cache).remember_modules(modules)
    for warm in ("auto", "collection", "imports"):
        assert memory(cache).recall(warm).modules == modules


@property_based
@given(
    st.dictionaries(
        st.sampled_from(["forkd/unsuitable", "forkd/modules"]),
        json_values
        | st.fixed_dictionaries(
            {
                "args": st.just(["tests"]) | json_values,
                "files": st.just({}) | json_values,
                "findings": st.just([FINDING]) | json_values,
                "modules": json_values,
                "complete": json_values,
            }
        ),
    )
)
def test_nonsense_in_the_cache_is_as_good_as_nothing(content: dict[str, Any]) -> None:
    """Somebody may have edited it, or another version may have written it."""
    recalled = memory(Cache(content)).recall("auto")
    assert recalled.level in ("collection", "imports")
    assert all(isinstance(name, str) for name in recalled.modules.names)
    if recalled.finding is not None:
        config: Any = SimpleNamespace(invocation_params=SimpleNamespace(dir=Path.cwd()))
        assert finding_line(recalled.finding, config)


def test_a_finding_is_one_line_with_the_place_relative_to_where_pytest_was_started() -> None:
    config: Any = SimpleNamespace(invocation_params=SimpleNamespace(dir=Path.cwd()))
    path = str(Path.cwd() / "sub" / "conftest.py")
    assert finding_line(FINDING, config) == "a reason"
    assert finding_line({**FINDING, "path": path}, config) == "a reason (sub/conftest.py)"
    line = finding_line({**FINDING, "path": path, "lineno": 7}, config)
    assert line == "a reason (sub/conftest.py:7)"
