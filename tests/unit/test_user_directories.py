"""Where files of a user are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_forkd.runtime.user_directories import user_cache, user_state


@pytest.mark.parametrize("value", [None, "", "relative", "/elsewhere"])
def test_the_environment_decides_where_files_are_kept(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """The specification: what is not set, empty or relative does not count."""
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    found = (user_cache(), user_state())
    if value == "/elsewhere":
        assert found == (Path("/elsewhere/pytest-forkd"), Path("/elsewhere/pytest-forkd"))
    else:
        home = Path("/home/me")
        assert found == (home / ".cache/pytest-forkd", home / ".local/state/pytest-forkd")
