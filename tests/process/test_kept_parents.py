"""Parents that outlive a run: used again when nothing has changed, replaced when anything has."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_forkd.parent.kept.store import ParentStore
from tests.conftest import TIMEOUT, Runner
from tests.observing import BackgroundRun, wait_until

SUITE = """
    import os
    import heavy

    def test_one():
        with open("seen", "a") as file:
            file.write(f"{heavy.PID} {os.environ.get('FLAVOUR')} {os.getcwd()}\\n")

    def test_two():
        pass
"""
HEAVY = """
    import os
    PID = os.getpid()
"""

#: A test that goes on until it is ended, and leaves a process behind.
SLOW = """
    import subprocess, time

    def test_slow():
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        open("started", "w").close()
        time.sleep(600)
"""
#: How a user starts a run.
PYTEST = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "forkd", "--forkd-workers=2"]


@pytest.fixture
def site_packages(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules count as installed; it holds the module ``heavy``."""
    path = pytester.mkdir("site-packages")
    monkeypatch.setenv("PYTHONPATH", str(path))
    write(path / "heavy.py", HEAVY)
    pytester.makepyfile(test_it=SUITE)
    return path


def write(path: Path, text: str) -> None:
    """Write a file that was written a while ago, as installed files are."""
    path.write_text("\n".join(line.strip() for line in text.strip().splitlines()) + "\n")
    past = time.time() - 1000
    os.utime(path, (past, past))


def statuses() -> list[dict[str, Any]]:
    """What the kept parents of this test say of themselves."""
    found = []
    for connection in ParentStore.find().connections():
        with contextlib.closing(connection):
            connection.send({"status": {}})
            found.append(connection.receive(30).message["status"])
    return found


def origin(result: pytest.RunResult) -> str:
    """What the header says about the parent."""
    [line] = [line for line in result.outlines if re.match(r"forkd: .* process backend, ", line)]
    return line.split("process backend, ", 1)[1]


def is_running(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}/exe")


def kept_pid(result: pytest.RunResult) -> int:
    """The only kept parent, after a run that passed."""
    result.assert_outcomes(passed=2)
    [status] = statuses()
    assert status["runs"] == 0
    return int(status["pid"])


def test_the_second_run_uses_the_parent_of_the_first(
    pytester: pytest.Pytester, run: Runner, site_packages: Path
) -> None:
    first = run()
    pid = kept_pid(first)
    assert origin(first) == "parent made"
    second = run()
    assert kept_pid(second) == pid
    assert re.fullmatch(r"kept parent \(\d+ s old\)", origin(second))
    imported_by = {line.split()[0] for line in (pytester.path / "seen").read_text().splitlines()}
    assert imported_by == {str(pid)}, "the parent imports what the test files name"


def test_a_run_on_ci_keeps_none(run: Runner, site_packages: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("CI", "true")
    run().assert_outcomes(passed=2)
    assert statuses() == []
    assert kept_pid(run("--forkd-keep=600"))


@pytest.mark.parametrize("value", ["-1", "x", "inf", "nan"])
def test_a_keep_that_is_no_number_of_seconds(run: Runner, site_packages: Path, value: str) -> None:
    result = run(f"--forkd-keep={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--forkd-keep: '{value}' is no number of seconds.*"])
    assert statuses() == []


def test_a_parent_ends_when_it_was_not_used_for_so_long(run: Runner, site_packages: Path) -> None:
    pid = kept_pid(run("--forkd-keep=1"))
    assert wait_until(lambda: not is_running(pid), 10)
    assert os.listdir(ParentStore.find().directory) == ["lock"]


def test_the_ini_value_says_how_long(
    pytester: pytest.Pytester, run: Runner, site_packages: Path
) -> None:
    pytester.makeini("[pytest]\nforkd_keep = 77")
    kept_pid(run())
    assert [status["keep"] for status in statuses()] == [77.0]


def _edit(site_packages: Path) -> None:
    write(site_packages / "heavy.py", HEAVY + "\nEDITED = 1")


def _touch(site_packages: Path) -> None:
    os.utime(site_packages / "heavy.py")


def _replace_with_another(site_packages: Path) -> None:
    (site_packages / "heavy.py").unlink()
    (site_packages / "heavy").mkdir()
    write(site_packages / "heavy" / "__init__.py", HEAVY)


@pytest.mark.parametrize("change", [_edit, _touch, _replace_with_another])
def test_a_file_that_was_loaded_has_changed(
    run: Runner, site_packages: Path, change: Callable[[Path], None]
) -> None:
    pid = kept_pid(run())
    change(site_packages)
    result = run()
    assert kept_pid(result) != pid
    assert origin(result) == f"parent remade: {site_packages / 'heavy.py'} has changed"
    assert wait_until(lambda: not is_running(pid), 10)
    assert origin(run()).startswith("kept parent")


def test_a_file_of_the_suite_may_change(
    pytester: pytest.Pytester, run: Runner, site_packages: Path
) -> None:
    """It is loaded by the collector, anew for each run."""
    pid = kept_pid(run())
    pytester.makepyfile(test_it=SUITE.replace("test_two", "test_three"))
    result = run("-v")
    assert kept_pid(result) == pid
    result.stdout.fnmatch_lines(["*test_three*"])


@pytest.mark.parametrize("name", ["some-1.0.dist-info/RECORD", "some.pth"])
def test_a_package_was_installed(run: Runner, site_packages: Path, name: str) -> None:
    pid = kept_pid(run())
    path = site_packages / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    result = run()
    result.assert_outcomes(passed=2)
    assert origin(result) == "parent made"
    assert pid in {status["pid"] for status in statuses()}, "nobody has asked it to go"
    assert len(statuses()) == 2


def test_another_environment_means_another_parent(
    pytester: pytest.Pytester, run: Runner, site_packages: Path, monkeypatch: Any
) -> None:
    pids: dict[str, set[int]] = {}
    for flavour in ("sweet", "sour", "sweet"):
        monkeypatch.setenv("FLAVOUR", flavour)
        result = run()
        result.assert_outcomes(passed=2)
        pids.setdefault(flavour, {status["pid"] for status in statuses()})
    assert len(statuses()) == 2
    assert origin(result).startswith("kept parent")
    seen = [line.split()[1] for line in (pytester.path / "seen").read_text().splitlines()]
    assert seen == ["sweet", "sour", "sweet"]


def test_variables_of_the_shell_make_no_difference(
    run: Runner, site_packages: Path, monkeypatch: Any
) -> None:
    pid = kept_pid(run())
    monkeypatch.setenv("SHLVL", "17")
    monkeypatch.setenv("OLDPWD", "/somewhere")
    assert kept_pid(run()) == pid


def test_limits_and_umask_are_those_of_the_run(
    pytester: pytest.Pytester, run: Runner, site_packages: Path
) -> None:
    kept_pid(run())
    before = os.umask(0o027)
    try:
        result = run()
    finally:
        os.umask(before)
    assert origin(result) == "parent made"
    assert len(statuses()) == 2


def test_another_working_directory(
    pytester: pytest.Pytester, run: Runner, site_packages: Path, monkeypatch: Any
) -> None:
    """``python -m pytest`` looks for modules there first, so that parent is another one."""
    pytester.makeini("[pytest]")
    kept_pid(run())
    monkeypatch.chdir(pytester.mkdir("below"))
    result = run("../test_it.py")
    result.assert_outcomes(passed=2)
    assert origin(result) == "parent made"
    assert (pytester.path / "below" / "seen").read_text().split()[2].endswith("/below")


def test_another_suite_has_a_parent_of_its_own(
    pytester: pytest.Pytester, run: Runner, site_packages: Path, monkeypatch: Any
) -> None:
    pytester.makeini("[pytest]")
    kept_pid(run())
    other = pytester.mkdir("other")
    (other / "pytest.ini").write_text("[pytest]\n")
    (other / "test_other.py").write_text("def test_other(): pass\n")
    monkeypatch.chdir(other)
    run().assert_outcomes(passed=1)
    assert len(statuses()) == 2


def test_another_version_of_pytest_forkd_or_python_has_another_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pytest_forkd.parent import fingerprint as module

    def mark(**environ: str) -> str:
        return module.fingerprint("suite", ["heavy"], sys.path, environ)

    first = mark(A="1")
    assert mark(A="1") == mark(A="1", SHLVL="3") == first
    found = {first, mark(A="2"), mark(A="1", B="")}
    for name, value in (("version", "4.0"), ("executable", "/elsewhere"), ("prefix", "/venv")):
        with monkeypatch.context() as patch:
            patch.setattr(sys, name, value)
            found.add(mark(A="1"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "__version__", "99")
        found.add(mark(A="1"))
    assert len(found) == 7


# -- what must not be imported early ------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import warnings; warnings.warn('heavy is old', DeprecationWarning)", "heavy is old"),
        (
            "import threading, time; "
            "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
            "thread",
        ),
        ("import socket; SOCKET = socket.socketpair()", "socket"),
        ("import random; random.seed(1)", "random numbers"),
    ],
    ids=["warning", "thread", "socket", "seed"],
)
def test_a_package_that_does_more_than_define_is_not_imported_early(
    pytester: pytest.Pytester, run: Runner, site_packages: Path, body: str, reason: str
) -> None:
    """Its import belongs into the collector or the workers, where it is seen."""
    write(site_packages / "heavy.py", f"{HEAVY}\n{body}")
    write(site_packages / "fine.py", HEAVY)
    pytester.makepyfile(test_it=SUITE, test_more="import fine")
    for _attempt in range(2):
        result = run()
        result.assert_outcomes(passed=2, warnings=int("warn(" in body))
        [status] = statuses()
        assert reason in status["skipped"]["heavy"]
        assert "fine" in status["packages"]
        pid = status["pid"]
        assert str(pid) not in (pytester.path / "seen").read_text()
    assert origin(result).startswith("kept parent")


def test_what_an_early_import_sets_in_the_environment_is_there(
    pytester: pytest.Pytester, run: Runner, site_packages: Path
) -> None:
    write(site_packages / "heavy.py", f"{HEAVY}\nos.environ.setdefault('FLAVOUR', 'heavy')")
    for _attempt in range(2):
        kept_pid(run())
    assert [line.split()[1] for line in (pytester.path / "seen").read_text().splitlines()] == [
        "heavy",
        "heavy",
    ]


def test_the_project_s_own_package_is_never_imported_early(
    pytester: pytest.Pytester, run: Runner, site_packages: Path
) -> None:
    """Also if it is installed like any other, as tox does."""
    pytester.mkpydir("heavy")
    pytester.path.joinpath("heavy").rename(pytester.mkdir("src") / "heavy")
    for _attempt in range(2):
        pid = kept_pid(run())
    assert str(pid) not in (pytester.path / "seen").read_text()


def test_what_no_file_names_is_learnt(
    pytester: pytest.Pytester, run: Runner, site_packages: Path
) -> None:
    """The kept parent imports it after the run that did."""
    pytester.makepyfile(test_it=SUITE.replace("import heavy\n", "heavy = __import__('heavy')\n"))
    pid = kept_pid(run())
    assert str(pid) not in (pytester.path / "seen").read_text()
    wait_until(lambda: "heavy" in statuses()[0]["packages"])
    assert kept_pid(run()) == pid
    assert (pytester.path / "seen").read_text().splitlines()[-1].startswith(str(pid))


def test_what_must_not_be_learnt_costs_no_other_parent(
    pytester: pytest.Pytester, run: Runner, site_packages: Path
) -> None:
    """The parent leaves it out while nobody waits, and so does the next run that finds it."""
    write(site_packages / "drawing.py", f"{HEAVY}\nimport random; ID = random.randint(0, 9)")
    write(site_packages / "setting.py", f"{HEAVY}\nos.environ.setdefault('FLAVOUR', 'set')")
    names = "heavy = __import__('heavy'), __import__('setting'), __import__('drawing')"
    pytester.makepyfile(
        test_it=SUITE.replace("import heavy\n", f"{names}\n").replace("heavy.PID", "heavy[1].PID")
    )
    pid = kept_pid(run())
    wait_until(lambda: "setting" in statuses()[0]["packages"] and statuses()[0]["skipped"])
    [status] = statuses()
    assert status["pid"] == pid
    assert status["skipped"] == {"drawing": "seeds or draws random numbers when it is imported"}
    assert "drawing" not in status["packages"]
    for _attempt in range(2):
        result = run()
        assert kept_pid(result) == pid
        assert origin(result).startswith("kept parent")
        last = (pytester.path / "seen").read_text().splitlines()[-1]
        assert last.split()[:2] == [str(pid), "set"], "what setting has set was lost"
    write(site_packages / "setting.py", HEAVY)
    assert "setting.py has changed" in origin(run()), "as for one that was in use from the start"


# -- the end of a parent, and several runs -------------------------------------------------------


def test_ten_runs_started_together_make_one_parent(
    pytester: pytest.Pytester, site_packages: Path
) -> None:
    runs = [
        subprocess.Popen(PYTEST, stdout=subprocess.PIPE, text=True, cwd=pytester.path)
        for _ in range(10)
    ]
    outputs = [process.communicate(timeout=TIMEOUT)[0] for process in runs]
    assert all("2 passed" in output for output in outputs), outputs
    assert sum("parent made" in output for output in outputs) == 1
    found = sum("parent shared" in output or "kept parent (" in output for output in outputs)
    assert found == 9, outputs
    [status] = statuses()
    assert status["uses"] == 10
    seen = (pytester.path / "seen").read_text().splitlines()
    assert {line.split()[0] for line in seen} == {str(status["pid"])}


def test_a_parent_that_was_killed_is_replaced(run: Runner, site_packages: Path) -> None:
    pid = kept_pid(run())
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not is_running(pid), 10)
    result = run()
    assert kept_pid(result) != pid
    assert origin(result) == "parent made"


@pytest.mark.parametrize("when", ["collecting", "running"])
def test_a_kept_parent_that_is_killed_during_a_run(
    pytester: pytest.Pytester, run: Runner, site_packages: Path, when: str
) -> None:
    """The run starts another one, and goes on."""
    kept_pid(run())
    [status] = statuses()
    wait = """
    import os, signal, time
    if not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill({pid}, signal.SIGKILL)
        time.sleep(60)
    """.format(pid=status["pid"])
    body = wait if when == "collecting" else wait.replace("\n    ", "\n        ")
    prefix = "" if when == "collecting" else "    def test_killer():"
    pytester.makepyfile(test_killer=f"{prefix}{body}\n    def test_last(): pass\n")
    result = run()
    result.assert_outcomes(passed=3 if when == "collecting" else 4)
    result.stdout.fnmatch_lines(["*forkd: the parent process *; starting another one*"])
    assert len(statuses()) == 1


def test_a_controller_that_is_killed_leaves_the_parent_but_nothing_else(
    pytester: pytest.Pytester, site_packages: Path
) -> None:
    pytester.makepyfile(test_slow=SLOW)
    with BackgroundRun(pytester, "--forkd-keep=60", "test_slow.py") as background:
        background.wait_for("started")
        background.process.kill()
        background.process.wait()

        def left() -> list[str]:
            return background.left(0)

        def only_the_parent() -> bool:
            lines = [line for line in left() if not line.startswith("/")]
            return len(lines) == 1 and "pytest_forkd/parent" in lines[0]

        assert wait_until(only_the_parent, 2), left()
        assert len(statuses()) == 1


def test_ctrl_c_leaves_the_parent_for_the_next_run(
    pytester: pytest.Pytester, site_packages: Path
) -> None:
    pytester.makepyfile(test_slow=SLOW)
    with BackgroundRun(pytester, "--forkd-keep=60", "test_slow.py") as background:
        background.wait_for("started")
        background.interrupt(everybody=True)
        assert background.wait(10) == pytest.ExitCode.INTERRUPTED
        left = [line for line in background.left(0) if not line.startswith("/")]
        assert len(left) == 1
        assert "pytest_forkd/parent" in left[0]


def test_nobody_waits_for_the_output_of_a_parent(
    pytester: pytest.Pytester, site_packages: Path
) -> None:
    """``pytest ... | tee log`` ends when pytest does."""
    output = subprocess.run(
        PYTEST, cwd=pytester.path, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert "2 passed" in output.stdout
    assert len(statuses()) == 1


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_that_others_may_look_into_is_not_used(
    run: Runner, site_packages: Path, mode: int
) -> None:
    directory = ParentStore.find().directory
    directory.mkdir()
    directory.chmod(mode)
    result = run()
    result.assert_outcomes(passed=2)
    assert "not kept: others may look into" in origin(result)
    assert os.listdir(directory) == []


def test_a_link_to_a_directory_is_not_used(
    pytester: pytest.Pytester, run: Runner, site_packages: Path
) -> None:
    target = pytester.mkdir("elsewhere")
    target.chmod(0o700)
    ParentStore.find().directory.symlink_to(target)
    result = run()
    result.assert_outcomes(passed=2)
    assert "not kept" in origin(result)
    assert os.listdir(target) == []


def test_bad_options_leave_no_parent(run: Runner, site_packages: Path) -> None:
    assert run("--no-such-option").ret == pytest.ExitCode.USAGE_ERROR
    assert run("--forkd-preload=missing").ret == pytest.ExitCode.USAGE_ERROR
    assert statuses() == []
    assert os.listdir(ParentStore.find().directory) == ["lock"]


# -- the command ---------------------------------------------------------------------------------


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest_forkd.commands.main", *args],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def test_status_lists_the_kept_parents(
    pytester: pytest.Pytester, run: Runner, site_packages: Path
) -> None:
    assert command("status").stdout == "no parent is kept\n"
    pid = kept_pid(run())
    heads, row = command("status").stdout.splitlines()
    assert heads.split()[:3] == ["PID", "AGE", "LAST"]
    assert row.startswith(str(pid))
    assert str(pytester.path) in row
    assert "heavy" in row.split()
    assert re.search(r"\d+ MB", row)


def test_stop_ends_those_of_suites_here(
    pytester: pytest.Pytester, run: Runner, site_packages: Path, monkeypatch: Any
) -> None:
    pid = kept_pid(run())
    monkeypatch.chdir("/")
    if os.path.commonpath([str(pytester.path), "/usr"]) == "/":
        monkeypatch.chdir("/usr")
    assert "no parent is kept for suites here" in command("stop").stdout
    assert is_running(pid)
    monkeypatch.chdir(pytester.path)
    assert command("stop").stdout == f"parent {pid} has ended\n"
    assert not is_running(pid)
    assert command("stop").stdout == "no parent is kept for suites here\n"


def test_stop_all(run: Runner, site_packages: Path, monkeypatch: Any) -> None:
    pid = kept_pid(run())
    monkeypatch.chdir("/usr")
    assert command("stop", "--all").stdout == f"parent {pid} has ended\n"
    assert command("stop", "--all").stdout == "no parent is kept\n"


def test_a_parent_in_use_ends_with_the_run(pytester: pytest.Pytester, site_packages: Path) -> None:
    pytester.makepyfile(
        test_slow="""
        import os, time
        def test_slow():
            open("started", "w").close()
            while not os.path.exists("go"):
                time.sleep(0.01)
        """
    )
    with BackgroundRun(pytester, "--forkd-keep=60", "test_slow.py") as background:
        background.wait_for("started")
        result = subprocess.run(
            [sys.executable, "-m", "pytest_forkd.commands.main", "stop", "--all"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert "ends with the 1 run that use it" in result.stdout
        (pytester.path / "go").touch()
        assert background.wait(20) == 0
        assert background.left(10) == []


# -- a collector that begins early ---------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, "auto"])
def test_a_collector_begins_while_the_controller_is_still_configured(
    pytester: pytest.Pytester, run: Runner, workers: int | str
) -> None:
    """And it is the one that goes on: the conftest is loaded once for all workers."""
    pytester.makeconftest("open('loaded', 'a').write('x')")
    pytester.makepyfile("def test_it(worker_id, testrun_uid): pass\ndef test_that(): pass")
    for number in (1, 2):
        run(workers=workers).assert_outcomes(passed=2)
        assert len((pytester.path / "loaded").read_text()) == 2 * number


def test_a_collector_that_began_with_another_environment_is_not_used(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """A conftest changes what xdist's workers would inherit, too."""
    pytester.makeconftest(
        """
        import os
        open("loaded", "a").write("x")
        os.environ.setdefault("SET_BY", str(__import__("posix").getpid()))
        """
    )
    pytester.makepyfile(
        """
        import os
        def test_it(): assert os.environ["SET_BY"] == os.environ["PYTEST_XDIST_SET_BY"]
        """
    )
    with open(pytester.path / "conftest.py", "a") as file:
        file.write("\nos.environ.setdefault('PYTEST_XDIST_SET_BY', os.environ['SET_BY'])\n")
    run("-v").assert_outcomes(passed=1)
    assert 2 <= len((pytester.path / "loaded").read_text()) <= 3, "one may have been stopped early"
