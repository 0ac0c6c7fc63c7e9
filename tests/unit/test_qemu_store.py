"""What is built for the qemu backend is complete or not there, and is built once."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_forkd.backends.base import BackendError
from pytest_forkd.commands import main as cli
from pytest_forkd.qemu.store import Artifact, ArtifactStore
from tests.unit import in_a_fork, no_longer_than


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return ArtifactStore.find()


def small(folder: Path) -> dict[str, Any]:
    (folder / "file").write_text("content")
    return {"what": "small"}


def age(entry: Artifact, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(entry.path / "used", (then, then))


def files(store: ArtifactStore) -> list[str]:
    """All that there is, but for locks."""
    found = (path.relative_to(store.directory) for path in store.directory.rglob("*"))
    return sorted(str(path) for path in found if path.suffix != ".lock")


def test_what_was_built_is_found_with_its_notes(store: ArtifactStore) -> None:
    assert store.get("images", "a") is None
    built = store.build("images", "a", small)
    found = store.get("images", "a")
    assert found == built
    assert found is not None
    assert found.meta["what"] == "small"
    assert (found.path / "file").read_text() == "content"
    assert found.size >= 4096
    assert time.time() - found.used < 60
    for path in (store.directory, found.path):
        assert path.stat().st_mode & 0o077 == 0, "nobody else may look"


def test_runs_started_together_build_once(store: ArtifactStore) -> None:
    built = []

    def slowly(folder: Path) -> dict[str, Any]:
        built.append(folder)
        time.sleep(0.3)
        return small(folder)

    with no_longer_than(20):
        threads = [
            threading.Thread(target=store.build, args=("images", "a", slowly)) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(built) == 1


def test_nothing_half_written_is_left_or_found(store: ArtifactStore) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        small(folder)
        raise BackendError("it cannot be built")

    def die(folder: Path) -> dict[str, Any]:
        small(folder)
        os._exit(9)

    with pytest.raises(BackendError, match="it cannot be built"):
        store.build("images", "a", fail)
    assert files(store) == ["images"]
    assert in_a_fork(lambda: store.build("images", "a", die)) == 9
    assert store.get("images", "a") is None
    assert store.entries() == []
    store.sweep()
    assert files(store) == ["images"]
    in_a_fork(lambda: store.build("images", "a", die))
    assert store.build("images", "a", small).path.is_dir(), "who comes next builds it"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_what_to_do(store: ArtifactStore, number: int) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        small(folder)
        raise OSError(number, os.strerror(number))

    with pytest.raises(BackendError, match=r"no space left .*\nMake room.*image prune"):
        store.build("images", "a", fail)
    assert files(store) == ["images"]


def test_a_cache_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BackendError, match=r"file.*: Not a directory.\nXDG_CACHE_HOME says"):
        ArtifactStore.find().build("images", "a", small)


def test_what_is_in_use_is_not_removed(store: ArtifactStore) -> None:
    entry = store.build("images", "a", small)
    with entry.held() as path:
        assert not store.remove(entry)
        assert (path / "file").exists()
    assert store.remove(entry)
    assert files(store) == ["images"]
    assert store.remove(entry), "it has gone already"
    with pytest.raises(BackendError, match="has just been removed"), entry.held():
        pass


def test_its_use_is_noted(store: ArtifactStore) -> None:
    entry = store.build("images", "a", small)
    age(entry, 1000)
    with entry.held():
        pass
    assert time.time() - entry.used < 60


def test_with_an_image_go_its_snapshots(store: ArtifactStore) -> None:
    image = store.build("images", "a", small)
    other = store.build("snapshots", "x", lambda folder: {"image": "another"})
    snapshot = store.build("snapshots", "s", lambda folder: {"image": "a"})
    with snapshot.held():
        assert not store.remove(image)
    assert store.remove(image)
    assert store.entries() == [other]


# the command --------------------------------------------------------------------------------------


def test_the_command_lists_removes_and_prunes(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["image", "list"]) == 0
    assert capsys.readouterr().out == "nothing has been built\n"
    old, used, held = (store.build("images", name, small) for name in ("aa1", "aa2", "bb"))
    age(old, 9 * 86400)
    age(held, 9 * 86400)
    assert cli.main(["image", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[1] == "aa2", "what was used last comes first"
    assert "9 days ago" in next(line for line in lines if " aa1 " in line)

    fd = os.open(held.path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        assert cli.main(["image", "prune", "--older-than", "7d"]) == 1
    finally:
        os.close(fd)
    said = capsys.readouterr()
    assert "removed image aa1" in said.out
    assert said.err == "pytest-forkd: image bb is in use\n"
    assert {entry.name for entry in store.entries()} == {"aa2", "bb"}

    store.build("images", "aa3", small)
    assert cli.main(["image", "rm", "aa", "cc"]) == 1
    said = capsys.readouterr()
    assert said.err == (
        "pytest-forkd: 'aa' names more than one\npytest-forkd: 'cc' is nothing that was built\n"
    )
    assert cli.main(["image", "rm", "aa2", "b"]) == 0
    assert [entry.name for entry in store.entries()] == ["aa3"]
    assert used.path.exists() is False
    assert cli.main(["image", "prune", "--older-than", "0s"]) == 0
    assert store.entries() == []


def test_a_time_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        cli.main(["image", "prune", "--older-than", "soon"])
    assert info.value.code == 2
    assert "'soon' is no time; give a number and a unit" in capsys.readouterr().err


def test_what_cannot_be_built_is_one_message(
    store: ArtifactStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kernel").write_text("no kernel")
    assert cli.main(["image", "build", "--kernel", str(tmp_path / "kernel")]) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"pytest-forkd: --forkd-kernel: {tmp_path / 'kernel'} cannot be used: "
        "it is no Linux kernel for x86 (bzImage).\n"
    )
    assert cli.main(["image", "build", "--kernel", "/no/such"]) == 4
    assert "/no/such cannot be used: No such file" in capsys.readouterr().err


def test_nothing_is_removed_or_opened_through_a_link(tmp_path: Path) -> None:
    """The cache may be in a place where others can write."""
    precious = tmp_path / "precious"
    (precious / "below").mkdir(parents=True)
    (precious / "below").chmod(0o500)
    folder = tmp_path / "cache" / "images"
    folder.mkdir(parents=True)
    (folder / "x.trash-1").symlink_to(precious)
    ArtifactStore(tmp_path / "cache").sweep()
    assert (precious / "below").stat().st_mode & 0o777 == 0o500
