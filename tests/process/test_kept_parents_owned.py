"""Kept parents that are stopped, killed, forged or too many: what is ended, what is left alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_forkd.parent.fingerprint import VOLATILE, that_matter
from pytest_forkd.parent.kept.entries import is_entry, remove_entry
from pytest_forkd.parent.kept.keeping import CHECK_INTERVAL
from pytest_forkd.parent.kept.store import ParentStore
from pytest_forkd.runtime.process_tree import Process
from tests.conftest import TIMEOUT, Runner
from tests.observing import BackgroundRun, processes_of, wait_until
from tests.process.test_kept_parents import SLOW, command, is_running, origin, statuses

linux = pytest.mark.skipif("sys.platform != 'linux'", reason="needs /proc and pidfd_open(2)")
ENTRY = "0123456789abcdef0123-abcd1234"


@pytest.fixture
def suite(pytester: pytest.Pytester) -> Path:
    """Two tests that pass."""
    pytester.makepyfile("def test_one(): pass\ndef test_two(): pass")
    return pytester.path


def the_pid(result: pytest.RunResult) -> int:
    """The only kept parent that answers, after a run that passed."""
    result.assert_outcomes(passed=2)
    [status] = statuses()
    return int(status["pid"])


# -- whose directory it is ------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["status", "stop"])
def test_nothing_is_removed_through_a_link(pytester: pytest.Pytester, what: str) -> None:
    precious = pytester.mkdir("precious")
    precious.chmod(0o700)
    for name in ("my-project", ENTRY):
        (precious / name).mkdir()
        (precious / name / "log").write_text("mine")
        os.utime(precious / name, (1, 1))
    ParentStore.find().directory.symlink_to(precious)
    result = command(what, *(["--all"] if what == "stop" else []))
    assert result.returncode == 1
    assert "is no directory" in result.stderr
    assert {path.name for path in precious.iterdir()} == {"my-project", ENTRY}
    assert (precious / ENTRY / "log").read_text() == "mine"


def test_others_directories_are_not_looked_into() -> None:
    directory = ParentStore.find().directory
    directory.mkdir()
    directory.chmod(0o755)
    result = command("status")
    assert result.returncode == 1
    assert "its mode is to be 0700" in result.stderr


def test_only_what_we_make_is_removed(tmp_path: Path) -> None:
    """What a parent that was killed has left goes; anything else stays."""
    directory = ParentStore.find().directory
    directory.mkdir(mode=0o700)
    for name in ("my-project", ENTRY, ENTRY[:-1] + "5", ENTRY[:-1] + "6"):
        (directory / name).mkdir()
        (directory / name / "log").write_text("")
    (directory / (ENTRY[:-1] + "5") / "thesis").write_text("mine")
    (tmp_path / "log").write_text("mine")
    linked = directory / (ENTRY[:-1] + "7")
    linked.symlink_to(tmp_path)
    for name in os.listdir(directory):
        os.utime(directory / name, (1, 1), follow_symlinks=False)
    assert "no parent is kept" in command("status").stdout
    assert sorted(os.listdir(directory)) == sorted(
        ["my-project", ENTRY[:-1] + "5", ENTRY[:-1] + "7"]
    )
    assert sorted(os.listdir(directory / (ENTRY[:-1] + "5"))) == ["log", "thesis"]
    assert (tmp_path / "log").read_text() == "mine"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=40) | st.from_regex(r"[0-9a-f]{18,22}.[0-9a-z_]{7,9}", fullmatch=True))
def test_names_that_could_lead_elsewhere_are_none_of_ours(name: str) -> None:
    if is_entry(name):
        assert len(name) == 29
        assert not set(name) & set("/.\0\n")
    else:
        assert not remove_entry(-1, name)


@given(
    st.dictionaries(
        st.sampled_from(["pid", "started", "namespace", "x"]),
        st.none() | st.integers() | st.text() | st.lists(st.integers()) | st.booleans(),
    )
)
def test_a_process_that_is_no_process(stored: dict[str, Any]) -> None:
    found = Process.from_json(stored)
    assert found is None or (found.to_json().items() <= stored.items() and found.pid > 1)


# -- those that do not answer ---------------------------------------------------------------------


@linux
def test_a_stopped_parent_is_replaced_and_stop_ends_it(suite: Path) -> None:

    def output() -> str:
        # It ends with the run: nobody else has it open.
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "forkd", "--forkd-workers=2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
        ).stdout

    assert "2 passed" in output()
    [before] = statuses()
    pid = int(before["pid"])
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    text = output()
    assert time.monotonic() - began < 10
    assert "2 passed" in text
    assert f"the kept one ({pid}) does not answer: it is stopped" in text
    assert "preload" not in text
    assert "kept parent (" in output(), "the new one is used"
    assert is_running(pid), "somebody may have stopped it on purpose"
    status = command("status")
    assert status.returncode == 1
    assert f"parent {pid} does not answer: it is stopped" in status.stderr
    stopped = command("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert f"parent {pid} does not answer: it is stopped; it was killed" in stopped.stdout
    assert not is_running(pid)
    assert os.listdir(ParentStore.find().directory) == ["lock"]


@linux
def test_a_first_run_that_imports_for_long_is_waited_for(
    pytester: pytest.Pytester, suite: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pytester.mkdir("lib") / "slow_one.py").write_text("import time; time.sleep(2.5)")
    monkeypatch.setenv("PYTHONPATH", str(pytester.path / "lib"))
    result = run("--forkd-preload=slow_one")
    result.assert_outcomes(passed=2)
    assert origin(result) == "parent made"


# -- what is one's own ----------------------------------------------------------------------------


@linux
def test_a_kept_parent_that_is_killed_leaves_nothing(pytester: pytest.Pytester) -> None:
    """Also what a test has started in a session of its own, with an environment of its own."""
    pytester.makepyfile(
        test_slow="""
        import os, subprocess, time
        def test_slow():
            if not os.path.exists("started"):
                child = subprocess.Popen(["sleep", "77"], start_new_session=True, env={})
                open("child", "w").write(str(child.pid))
                os.rename("child", "started")
                time.sleep(60)
        """
    )
    with BackgroundRun(pytester, "--forkd-keep=60", "test_slow.py") as background:
        background.wait_for("started")
        [status] = statuses()
        assert status["runs"] == 1
        os.kill(int(status["pid"]), signal.SIGKILL)
        assert background.wait(TIMEOUT) == 0
        sleeper = int((pytester.path / "started").read_text())
        assert wait_until(lambda: not is_running(sleeper), 2)
        [kept] = [status["pid"] for status in statuses()]
        left = [line for line in processes_of(background.mark) if not line.startswith(f"{kept}:")]
        assert left == []


@linux
def test_a_run_that_ends_leaves_a_stopped_parent_to_others(
    pytester: pytest.Pytester,
) -> None:
    """It ends what it has started itself; the parent may be in use by another run."""
    pytester.makepyfile(test_slow=SLOW)
    with BackgroundRun(pytester, "--forkd-keep=60", "test_slow.py") as background:
        background.wait_for("started")
        [status] = statuses()
        pid = int(status["pid"])
        os.kill(pid, signal.SIGSTOP)
        background.interrupt(everybody=True)
        assert background.wait(20) == pytest.ExitCode.INTERRUPTED
        assert is_running(pid)

        def others() -> list[str]:
            return [x for x in processes_of(background.mark) if not x.startswith(f"{pid}:")]

        assert wait_until(lambda: not others(), 2), others()
        os.kill(pid, signal.SIGCONT)


# -- how many are kept, and for what ---------------------------------------------------------------


def test_at_most_so_many_are_kept(
    pytester: pytest.Pytester, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was used last is among them; the first is not."""
    for name in ("one", "two", "three"):
        folder = pytester.mkdir(name)
        (folder / "pytest.ini").write_text("[pytest]\nforkd_keep_max = 2\n")
        (folder / "test_it.py").write_text("def test_it(): pass\n")
        monkeypatch.chdir(folder)
        run().assert_outcomes(passed=1)
    assert wait_until(
        lambda: len(os.listdir(ParentStore.find().directory)) == 3, 10
    )  # and the lock
    kept = {Path(status["project"].partition("|")[0]).name for status in statuses()}
    assert kept == {"two", "three"}


def test_a_parent_that_a_run_is_using_stays(
    pytester: pytest.Pytester, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many others have been used since."""
    for name in ("one", "two"):
        folder = pytester.mkdir(name)
        (folder / "pytest.ini").write_text("[pytest]\nforkd_keep_max = 1\n")
        (folder / "test_it.py").write_text(
            "import os, time\n"
            "def test_it(request):\n"
            "    open('started', 'w').close()\n"
            "    while request.config.rootpath.name == 'one' and not os.path.exists('go'):\n"
            "        time.sleep(0.01)\n"
        )
    with BackgroundRun(pytester, "--forkd-keep=60", "--rootdir=one", "one") as background:
        background.wait_for("started")
        monkeypatch.chdir(pytester.path / "two")
        run().assert_outcomes(passed=1)
        time.sleep(2 * CHECK_INTERVAL)
        assert sorted(status["runs"] for status in statuses()) == [0, 1]
        (pytester.path / "go").touch()
        assert background.wait(20) == 0
    assert wait_until(
        lambda: len(os.listdir(ParentStore.find().directory)) == 2, 10
    )  # and the lock


@pytest.mark.parametrize("end", ["SIGTERM", "SIGHUP", "its directory is removed"])
def test_a_parent_that_is_to_end_leaves_nothing(
    suite: Path, run: Runner, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    pid = the_pid(run())
    [entry] = [path for path in Path(ParentStore.find().directory).iterdir() if path.is_dir()]
    if end.startswith("SIG"):
        os.kill(pid, getattr(signal, end))
    else:
        shutil.rmtree(entry)
    assert wait_until(lambda: not is_running(pid), 10)
    assert wait_until(lambda: not entry.exists(), 5)
    assert the_pid(run()) != pid


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5"])
def test_a_number_of_parents_that_is_none(
    pytester: pytest.Pytester, suite: Path, run: Runner, value: str
) -> None:
    pytester.makeini(f"[pytest]\nforkd_keep_max = {value}")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*forkd_keep_max: '{value}' is no number of parents to keep.*"])


def test_the_parent_of_a_suite_that_is_gone_ends(
    pytester: pytest.Pytester, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pytester.mkdir("passing")
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text("def test_it(): pass\n")
    monkeypatch.chdir(folder)
    run().assert_outcomes(passed=1)
    [status] = statuses()
    monkeypatch.chdir(pytester.path)
    folder.rename(pytester.path / "elsewhere")
    assert wait_until(lambda: not is_running(status["pid"]), 10)


def test_a_run_inside_a_test_keeps_none(
    suite: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PYTEST_CURRENT_TEST", "test_it.py::test_one (call)")
        run().assert_outcomes(passed=2)
    assert statuses() == []


def test_a_session_s_variables_make_no_other_parent(
    pytester: pytest.Pytester, suite: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini("[pytest]\nforkd_keep_ignore_env =\n    MY_*\n    !WINDOWID")
    pid = the_pid(run())
    for name in ("STARSHIP_SESSION_KEY", "TERM_SESSION_ID", "SSH_AUTH_SOCK", "MY_PROMPT"):
        monkeypatch.setenv(name, "another")
    assert the_pid(run()) == pid
    monkeypatch.setenv("WINDOWID", "17")
    assert origin(run()) == "parent made", "the ini file says that it matters"


@given(st.dictionaries(st.sampled_from(["A", "AB", "SHLVL", "WINDOWID", "LANG"]), st.text()))
def test_which_variables_matter(environ: dict[str, str]) -> None:
    def names(*ignored: str) -> set[str]:
        return {name for name, _value in that_matter(environ, ignored)}

    assert names() == environ.keys() - {"SHLVL", "WINDOWID"}
    assert names("A*") == environ.keys() - {"SHLVL", "WINDOWID", "A", "AB"}
    assert names("A*", "!AB", "!SHLVL") == environ.keys() - {"WINDOWID", "A"}


def test_the_list_of_variables_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "options.md").read_text("utf-8")
    assert [pattern for pattern in VOLATILE if f"`{pattern}`" not in text] == []
