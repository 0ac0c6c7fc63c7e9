"""Warnings of workers are made again without importing or calling what the message names."""

from __future__ import annotations

import builtins
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_forkd import PytestForkdWarning
from pytest_forkd.channel.events import pack_object, unpack_object
from pytest_forkd.controller.received_warnings import rebuild_warning
from pytest_forkd.parent.worker.warned import take_apart
from tests.unit import property_based
from tests.unit.test_events import builtins as plain_values
from tests.unit.test_events import texts

BUILTIN = [
    value
    for value in vars(builtins).values()
    if isinstance(value, type) and issubclass(value, Warning)
]


class Plain(UserWarning):
    pass


class Elaborate(UserWarning):
    made = 0

    def __init__(self, number: int, *, text: str = "") -> None:
        super().__init__(number, text)
        Elaborate.made += 1

    def __str__(self) -> str:
        return f"number {self.args[0]}"


def serialized(message: Warning) -> dict[str, Any]:
    """What a worker sends when ``message`` was given as a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn(message, stacklevel=1)
    data = unpack_object(pack_object(take_apart(caught[0])))
    assert isinstance(data, dict)
    return data


@pytest.mark.parametrize(
    "category",
    [*BUILTIN, Plain, PytestForkdWarning, pytest.PytestWarning],
    ids=lambda c: c.__name__,
)
def test_a_warning_of_a_known_class_comes_back_whole(category: type[Warning]) -> None:
    data = serialized(category("careful", 3))
    found = rebuild_warning(data)
    assert found.category is category
    assert type(found.message) is category
    assert found.message.args == ("careful", 3)
    assert str(found.message) == str(category("careful", 3))
    assert found.filename == data["filename"] == __file__
    assert found.lineno == data["lineno"] > 0


def test_a_class_with_code_of_its_own_is_named_but_not_called() -> None:
    data = serialized(Elaborate(3, text="ignored"))
    made = Elaborate.made
    found = rebuild_warning(data)
    assert found.category is Elaborate
    assert str(found.message) == "number 3"
    assert Elaborate.made == made
    assert "number 3" in warnings.formatwarning(
        found.message, found.category, found.filename, found.lineno, "line"
    )


def test_a_class_whose_metaclass_has_code_is_not_called() -> None:
    called = []

    class Meta(type):
        def __call__(cls, *args: Any) -> Any:
            called.append(args)
            return super().__call__(*args)

    class Odd(UserWarning, metaclass=Meta):
        pass

    module = types.ModuleType("a_module_with_an_odd_warning")
    module.Odd = Odd  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        data = serialized(Plain("text"))
        for part in ("category", "message"):
            data[f"{part}_module"] = module.__name__
            data[f"{part}_class_name"] = "Odd"
        found = rebuild_warning(data)
    finally:
        del sys.modules[module.__name__]
    assert str(found.message) == "text"
    assert called == []


def test_a_module_that_is_not_loaded_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its class is stood in for by one of the same name, which the summary shows."""
    (tmp_path / "not_loaded.py").write_text("class Special(UserWarning): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    data = serialized(Plain("text"))
    for part in ("category", "message"):
        data[f"{part}_module"] = "not_loaded"
        data[f"{part}_class_name"] = "Special"
    found = rebuild_warning(data)
    assert "not_loaded" not in sys.modules
    assert found.category.__name__ == "Special"
    assert issubclass(found.category, Warning)
    assert str(found.message) == "text"


def test_a_lazy_module_is_not_made_to_import() -> None:
    asked: list[str] = []
    module = types.ModuleType("a_lazy_module")
    module.__getattr__ = asked.append  # type: ignore[method-assign]
    sys.modules[module.__name__] = module
    try:
        data = serialized(Plain("text"))
        data["category_module"], data["category_class_name"] = module.__name__, "Special"
        rebuild_warning(data)
    finally:
        del sys.modules[module.__name__]
    assert asked == []


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "abort"), ("builtins", "SystemExit"), ("builtins", "int"), ("warnings", "__name__")],
)
def test_what_is_no_warning_class_is_never_called(module: str, name: str) -> None:
    data = serialized(Plain("text"))
    for part in ("category", "message"):
        data[f"{part}_module"], data[f"{part}_class_name"] = module, name
    found = rebuild_warning(data)
    assert issubclass(found.category, Warning)
    assert isinstance(found.message, Warning)


FIELDS = [
    "category_module",
    "category_class_name",
    "message_module",
    "message_class_name",
    "message_str",
    "message_args",
    "filename",
    "lineno",
    "file",
    "line",
    "source",
]


@property_based
@given(
    st.dictionaries(
        st.sampled_from(FIELDS),
        plain_values | st.sampled_from(["builtins", "sys", "warnings", "UserWarning", "os", "\0"]),
        min_size=9,
    )
    | st.fixed_dictionaries(dict.fromkeys(FIELDS, texts))
)
def test_junk_is_an_error_that_its_receiver_expects(data: dict[str, Any]) -> None:
    before = set(sys.modules)
    try:
        found = rebuild_warning(data)
    except (KeyError, TypeError, ValueError):
        pass
    else:
        assert isinstance(found, warnings.WarningMessage)
    assert set(sys.modules) == before
