"""What we have to say for ourselves ends no run, and adds nothing to what pytest says."""

from __future__ import annotations

import pytest

from tests.conftest import TIMEOUT, Runner


@pytest.mark.skipif("sys.platform != 'linux'", reason="nobody may write to /proc")
@pytest.mark.parametrize("error", [False, True])
def test_a_cache_that_cannot_be_written_adds_no_warning_of_ours(
    pytester: pytest.Pytester, run: Runner, error: bool
) -> None:
    """As in a root directory that may only be read: pytest has its say, and we have none."""
    pytester.makepyfile("def test_it(): pass")
    options = ["-ocache_dir=/proc/nowhere", *(["-W", "error"] if error else [])]
    seen = {}
    for runner in ("xdist", "forkd"):
        result = run(*options, runner=runner)
        output = result.stdout.str() + result.stderr.str()
        seen[runner] = [result.ret, output.count("PytestCacheWarning")]
        assert "pytest_forkd" not in output
    assert seen["forkd"] == seen["xdist"]


@pytest.mark.parametrize("warm", ["auto", "collection"])
def test_a_warning_of_ours_that_is_to_be_an_error_is_told_in_words(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """It was an internal error before any test had run."""
    pytester.makeconftest("def pytest_sessionstart(): pass")
    pytester.makepyfile("def test_it(): pass")
    result = run(f"--forkd-warm={warm}", "-W", "error")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    assert "INTERNALERROR" not in result.stdout.str()
    if warm == "collection":
        result.stdout.fnmatch_lines(["forkd: workers share one collection, but*"])


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        (["-n1", "--tx=popen"], 1),
        (["--tx=3*popen", "--dist=load"], 3),
        (["--tx=popen", "--tx=popen", "-d"], 2),
    ],
)
def test_popen_specifications_are_so_many_workers(
    pytester: pytest.Pytester, options: list[str], workers: int
) -> None:
    pytester.makeini("[pytest]\nforkd_replace_xdist = true")
    pytester.makepyfile(
        "import pytest\n@pytest.mark.parametrize('i', range(9))\ndef test_it(i): pass"
    )
    result = pytester.runpytest_subprocess("-p", "xdist", "-p", "forkd", *options, timeout=TIMEOUT)
    result.assert_outcomes(passed=9)
    result.stdout.fnmatch_lines([f"forkd: {workers} worker*"])


def test_specifications_that_are_meant_for_xdist(pytester: pytest.Pytester) -> None:
    """As -n is: the ini file's number of workers is a default. They were ignored."""
    pytester.makeini("[pytest]\nforkd_workers = 3")
    pytester.makepyfile("def test_it(): pass")
    arguments = ["-p", "xdist", "-p", "forkd", "--tx=2*popen", "--dist=load"]
    result = pytester.runpytest_subprocess(*arguments, timeout=TIMEOUT)
    result.assert_outcomes(passed=1)
    assert "forkd: " not in result.stdout.str()
    result.stdout.fnmatch_lines(["created: 2/2 workers"])


@pytest.mark.parametrize("spec", ["popen//python=python2", "ssh=somewhere", "x*popen"])
def test_other_specifications_are_refused(pytester: pytest.Pytester, spec: str) -> None:
    pytester.makeini("[pytest]\nforkd_replace_xdist = true")
    arguments = ["-p", "xdist", "-p", "forkd", "-n1", f"--tx={spec}"]
    result = pytester.runpytest_subprocess(*arguments, timeout=TIMEOUT)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--tx={spec}" in result.stderr.str()


@pytest.mark.parametrize("warm", ["auto", "collection", "imports"])
def test_a_library_that_warns_of_forks_does_not_warn_of_ours(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """As JAX does: standard error had the line of our own that forks, or the run a warning."""
    pytester.makepyfile(
        """
        import os, threading, warnings

        os.register_at_fork(before=lambda: warnings.warn("forking", RuntimeWarning))
        READ, WRITE = os.pipe()  # a finding, at level auto

        def test_one(): pass
        def test_two(): pass
        """
    )
    result = run(f"--forkd-warm={warm}", "-W", "ignore::pytest_forkd.PytestForkdWarning")
    result.assert_outcomes(passed=2, warnings=0)
    assert "forking" not in result.stdout.str() + result.stderr.str()
