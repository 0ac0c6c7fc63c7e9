"""What makes no sense, or cannot be had here: one or two clear lines, exit code 4, nothing left."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_forkd.backends.base import BackendError
from pytest_forkd.backends.process.launching import runtime_directory
from pytest_forkd.controller.settings import Settings, make_backend
from pytest_forkd.parent.plan import Plan
from tests.conftest import TIMEOUT, Runner
from tests.observing import MARK, blamed, processes_of

Refused = Callable[..., str]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def refused(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Run pytest with arguments that it is to refuse; returns what it wrote to standard error."""
    temporary = pytester.mkdir("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv(MARK, str(pytester.path))
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))

    def refused(*args: str, xdist: str = "xdist") -> str:
        pytester.makepyfile(test_it="open('ran', 'w').close()\ndef test_it(): pass")
        before = files()
        result = pytester.runpytest_subprocess("-p", xdist, "-p", "forkd", *args, timeout=TIMEOUT)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        told = [line for line in result.errlines if line.strip()]
        assert told[0].startswith("ERROR: ")
        assert len(told) <= 2
        for text in ("Traceback", "INTERNALERROR", "Error>"):
            assert text not in result.stdout.str()
            assert text not in result.stderr.str()
        assert processes_of(str(pytester.path)) == []
        assert files() == before
        return "\n".join(told)

    def files() -> set[str]:
        return {
            str(path)
            for path in pytester.path.rglob("*")
            if not path.relative_to(pytester.path).parts[0].startswith(("runpytest-", "std"))
            and "__pycache__" not in path.parts
        }

    return refused


# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["option", "ini"])
@pytest.mark.parametrize("value", ["-1", "x", "1.5"])
def test_no_number_of_workers(
    pytester: pytest.Pytester, refused: Refused, value: str, source: str
) -> None:
    if source == "option":
        told = refused(f"--forkd-workers={value}")
        assert f"--forkd-workers: {value!r}" in told
    else:
        pytester.makeini(f"[pytest]\nforkd_workers = {value}")
        told = refused()
        assert f"ini value forkd_workers: {value!r}" in told
    assert "'auto'" in told


@pytest.mark.parametrize("source", ["option", "ini"])
@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("backend", ["auto", "process", "qemu", "forkd"]),
        ("warm", ["auto", "collection", "imports"]),
    ],
)
def test_no_such_choice(
    pytester: pytest.Pytester, refused: Refused, name: str, choices: list[str], source: str
) -> None:
    """The message names the source, the value, and what there is to choose from."""
    if source == "option":
        told = refused("--forkd-workers=2", f"--forkd-{name}=nonsense")
        assert f"--forkd-{name}: 'nonsense'" in told
    else:
        pytester.makeini(f"[pytest]\nforkd_{name} = nonsense")
        told = refused("--forkd-workers=2")
        assert f"ini value forkd_{name}: 'nonsense'" in told
    assert all(choice in told for choice in choices)


@pytest.mark.parametrize("source", ["option", "ini"])
def test_a_module_to_preload_that_does_not_exist(
    pytester: pytest.Pytester, refused: Refused, source: str
) -> None:
    if source == "option":
        told = refused("--forkd-workers=2", "--forkd-preload=no_such_module")
    else:
        pytester.makeini("[pytest]\nforkd_preload =\n    json\n    no_such_module")
        told = refused("--forkd-workers=2")
    assert "'no_such_module'" in told
    assert "ModuleNotFoundError" in told
    assert "forkd_preload" in told


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('not today')", "RuntimeError: not today"),
        ("def broken(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "exit"),
        ("import sys; sys.exit('not today')", "exit"),
        ("import os; os._exit(3)", "exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL"),
    ],
)
def test_a_module_to_preload_that_fails(
    pytester: pytest.Pytester, refused: Refused, source: str, reason: str
) -> None:
    pytester.makepyfile(broken=source)
    told = refused("--forkd-workers=2", "--forkd-preload=broken")
    assert reason in told.replace("SystemExit", "exit")


def test_a_module_to_preload_that_is_broken_when_a_parent_is_kept(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """The kept one has it, and is stale: it was an internal error."""
    pytester.makepyfile(module="", test_it="def test_it(): pass")
    run("--forkd-preload=module").assert_outcomes(passed=1)
    pytester.makepyfile(module="raise RuntimeError('not today')")
    result = run("--forkd-preload=module")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "INTERNALERROR" not in result.stdout.str()
    result.stderr.fnmatch_lines(["*--forkd-preload: cannot import 'module': *not today*"])


# -- combinations ------------------------------------------------------------------------------


def test_without_xdist(refused: Refused) -> None:
    told = refused("--forkd-workers=2", xdist="no:xdist")
    assert "pytest-xdist" in told
    assert "-p no:xdist" in told


@pytest.mark.parametrize("option", ["-n2", "--numprocesses=2", "-nauto", "-n0"])
def test_two_numbers_of_workers(refused: Refused, option: str) -> None:
    told = refused(option, "--forkd-workers=2")
    assert "-n" in told
    assert "--forkd-workers" in told


def test_tx_beside_workers(refused: Refused) -> None:
    told = refused("--tx=popen", "--forkd-workers=2")
    assert "--tx" in told


# -- what there is not -------------------------------------------------------------------------


def test_a_system_without_fork(pytester: pytest.Pytester, refused: Refused) -> None:
    pytester.makepyfile(no_fork="import os\ndel os.fork")
    told = refused("-p", "no_fork", "--forkd-workers=2")
    assert "fork()" in told
    assert "-n N" in told


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_no_temporary_directory_to_write_to(
    pytester: pytest.Pytester, refused: Refused, number: int
) -> None:
    pytester.makepyfile(
        no_room=f"""
        import os, tempfile
        def mkdtemp(suffix=None, prefix=None, dir=None):
            raise OSError({number}, os.strerror({number}), dir)
        tempfile.mkdtemp = mkdtemp
        """
    )
    told = refused("-p", "no_room", "--forkd-workers=2", "--forkd-keep=0")
    assert os.strerror(number) in told
    assert "TMPDIR" in told


@linux_only
def test_a_basetemp_that_cannot_be_made(pytester: pytest.Pytester, refused: Refused) -> None:
    """Nobody may write to /proc, not even root."""
    told = refused("--forkd-workers=2", "--basetemp=/proc/nowhere")
    assert "/proc/nowhere" in told
    assert "--basetemp" in told


@pytest.mark.parametrize("value", ["object()", "pathlib.Path('x')", "{'deep': [(1, object())]}"])
def test_a_workerinput_that_cannot_be_sent(
    pytester: pytest.Pytester, refused: Refused, value: str
) -> None:
    pytester.makeconftest(
        f"""
        import pathlib
        def pytest_configure_node(node):
            node.workerinput["something"] = {value}
        """
    )
    told = refused("--forkd-workers=2")
    assert "pytest_configure_node" in told
    assert "gw0" in told
    assert "builtins" in told


# -- where to look for room --------------------------------------------------------------------


@pytest.fixture
def bases(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """``XDG_RUNTIME_DIR`` and ``TMPDIR`` of this process, for the length of a test."""
    # Not below the test's directory: what is too long for a socket's path is passed over, too.
    with tempfile.TemporaryDirectory(prefix="forkd-test-") as folder:
        runtime, temporary = Path(folder) / "runtime", Path(folder) / "temporary"
        runtime.mkdir()
        temporary.mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(temporary))
            yield runtime, temporary


def test_a_runtime_directory_that_is_not_there_is_passed_over(bases: tuple[Path, Path]) -> None:
    runtime, temporary = bases
    runtime.rmdir()
    assert runtime_directory().parent == temporary


def test_a_full_disk_is_passed_over_and_left_clean(
    bases: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a directory, but no byte."""
    runtime, temporary = bases
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if runtime in path.parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert runtime_directory().parent == temporary
    assert list(runtime.iterdir()) == []


def test_the_first_failure_is_the_one_that_is_told(
    bases: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, temporary = bases

    def no_room(*, dir: str, **_kwargs: object) -> str:  # noqa: A002  # tempfile's own name
        number = errno.ENOSPC if dir == str(runtime) else errno.EROFS
        raise OSError(number, os.strerror(number), dir)

    monkeypatch.setattr(tempfile, "mkdtemp", no_room)
    with pytest.raises(BackendError, match=f"No space left on device: {runtime}"):
        runtime_directory()
    assert list(temporary.iterdir()) == []


def may_mount() -> bool:
    """Whether this process may mount a file system where nobody else sees it."""
    if sys.platform != "linux" or os.getuid() != 0 or shutil.which("unshare") is None:
        return False
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=4k", "none", "/mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("content", ["empty", "full"])
def test_a_temporary_directory_of_four_kilobytes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """A run needs no room there; where there is none at all, it goes elsewhere."""
    if not may_mount():
        pytest.skip("only root may mount a small file system")
    small = pytester.mkdir("small")
    monkeypatch.setenv("TMPDIR", str(small))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    pytester.makepyfile("def test_it(): print('x' * 100_000)\ndef test_that(): pass")
    fill = f"head -c 4096 /dev/zero > {small}/filler;" if content == "full" else ""
    script = (
        f"mount -t tmpfs -o size=4k none {small} && {fill} "
        f"{sys.executable} -m pytest -p xdist -p forkd --forkd-workers=2 --forkd-keep=0; "
        f"code=$?; ls -A {small}; exit $code"
    )
    result = pytester.run("unshare", "-m", "sh", "-c", script, timeout=TIMEOUT)
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    assert [line for line in result.outlines if line.startswith("pytest-")] == []


# -- choosing a backend ------------------------------------------------------------------------


def test_macos_leaves_auto_to_xdist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frameworks may not survive a fork; who asks for ``process`` gets it."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert make_backend(Settings(workers=2, backend="auto"), Plan()) is None
    backend = make_backend(Settings(workers=2, backend="process"), Plan())
    assert backend is not None
    assert backend.name == "process"


@pytest.mark.parametrize("name", ["auto", "process"])
def test_linux_forks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    backend = make_backend(Settings(workers=2, backend=name), Plan())
    assert backend is not None
    assert backend.name == "process"


@pytest.mark.parametrize("name", ["auto", "process"])
def test_windows_cannot_fork(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "fork")
    with pytest.raises(BackendError, match="win32"):
        make_backend(Settings(workers=2, backend=name), Plan())


def test_on_macos_the_workers_are_xdists(pytester: pytest.Pytester) -> None:
    """As many, with a line that says so and what to do about it."""
    pytester.makepyfile(
        as_on_macos="""
        import sys, types
        from pytest_forkd.controller import settings
        settings.sys = types.SimpleNamespace(platform="darwin", path=sys.path)
        """,
        test_it="""
        import os, pytest
        @pytest.mark.parametrize("i", range(6))
        def test_it(i, worker_id):
            assert worker_id in ("gw0", "gw1")
            assert os.environ["PYTEST_XDIST_WORKER_COUNT"] == "2"
        """,
    )
    result = pytester.runpytest_subprocess(
        *("-p", "xdist", "-p", "forkd", "-p", "as_on_macos", "--forkd-workers=2"),
        timeout=30,  # should xdist's workers distribute once more, they would never be done
    )
    result.assert_outcomes(passed=6)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["forkd: plain xdist workers: *--forkd-backend=process*", "2 workers ?6 items?"]
    )


# -- limits of the operating system ------------------------------------------------------------


@pytest.mark.parametrize("allowed", [24, 40])
def test_too_few_open_files(pytester: pytest.Pytester, refused: Refused, allowed: int) -> None:
    pytester.makepyfile(
        limited=f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({allowed}, 9999))"
    )
    told = refused("-p", "limited", "--forkd-workers=8")
    assert "open files" in told
    assert f"limit is {allowed} (RLIMIT_NOFILE" in told


def test_no_worker_can_be_forked(pytester: pytest.Pytester, run: Runner) -> None:
    """A suite that limits itself too far: no endless tries, no success without a test."""
    pytester.makepyfile(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(__import__("os").listdir("/proc/self/fd")),
                                                    resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        def test_it(): pass
        """
    )
    result = run()
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["!* no worker can be made: * Too many open files* !*"])
    assert result.stdout.str().count("fork failed") <= 4
    assert blamed(result) == []
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


# -- help --------------------------------------------------------------------------------------


def test_help_shows_all_options_in_their_groups(pytester: pytest.Pytester) -> None:
    """Each with its ini value, and the ini values where pytest lists them."""
    result = pytester.runpytest_subprocess("-p", "xdist", "-p", "forkd", "--help")
    assert result.ret == 0
    lines = result.outlines
    options = [line for line in lines if line.startswith(("  --forkd-", "  --no-forkd-"))]
    assert len(options) >= 4
    grouped, texts = [], []
    for heading in ("workers that are clones", "workers in microVMs", "workers in virtual"):
        [start] = [n for n, line in enumerate(lines) if line.startswith(heading)]
        group = lines[start + 1 : lines.index("", start)]
        grouped += [line for line in group if line.startswith("  --")]
        texts += group
    assert grouped == options
    text = " ".join(" ".join(texts).split())
    for line in options:
        option = line.split("=")[0].split()[0]
        if option.startswith("--no-") or option == "--forkd-allow-stale":
            continue  # the other half of one, and one that is not to become a habit
        twin = option.strip("-").replace("-", "_")
        assert f"Ini value: {twin}" in text
        assert len([line for line in lines if line.startswith(f"  {twin} (")]) == 1
