"""Workers that say what is not so: they end, with a reason, and the others' tests go on."""

from __future__ import annotations

import pytest

from tests.conftest import Runner

LIES = """
    import time
    import pytest
    from pytest_forkd.channel.events import pack_object

    def interactor(request):
        found, = (p for p in request.config.pluginmanager.get_plugins()
                  if type(p).__name__ == "Interactor")
        return found

    def say(request, *events):
        plugin = interactor(request)
        plugin.outbox.extend(events)
        plugin.outbox.flush()
        time.sleep(30)

    def report(request, **changes):
        data = {"nodeid": request.node.nodeid, "location": ["a", 1, "b"], "keywords": {},
                "outcome": "passed", "longrepr": None, "when": "call", "sections": [],
                "user_properties": [], "duration": 0.1, "start": 1.0, "stop": 1.1,
                "$report_type": "TestReport"}
        return ["report", {**data, **changes}]

    OUTPUT = {"exitstatus": 0, "shouldfail": False, "shouldstop": False}
    INFO = {"version": "3", "version_info": [3, 11, 0, "final", 0], "sysplatform": "", "cwd": "",
            "platform": "", "executable": ""}

    @pytest.mark.parametrize("lie", [
        lambda r: ["unscheduled", []],
        lambda r: ["ready", INFO],
        lambda r: ["finished", pack_object(OUTPUT)],
        lambda r: ["logstart", r.node.nodeid, [1, "x", None]],
        lambda r: report(r, nodeid="test_it.py::test_good[3]", outcome="failed", longrepr="forged"),
        lambda r: report(r, sections=[1]),
        lambda r: report(r, duration="x"),
        lambda r: report(r, toterminal="x"),
        lambda r: ["collectreport", report(r, outcome="failed", longrepr="forged")[1]],
        lambda r: ["deselected", [[1, None]]],
        lambda r: ["\\x1b[2J" + "x" * 1_000_000],
    ], ids=str)
    def test_lie(lie, request):
        say(request, lie(request))

    @pytest.mark.parametrize("i", range(4))
    def test_good(i):
        pass
"""


@pytest.mark.parametrize(
    "dist", ["", "load", "loadscope", "loadfile", "loadgroup", "worksteal", "each"]
)
def test_a_lie_ends_its_worker_alone(pytester: pytest.Pytester, run: Runner, dist: str) -> None:
    pytester.makepyfile(test_it=LIES.replace("ids=str", "ids=[f'l{i}' for i in range(11)]"))
    args = [f"--dist={dist}"] if dist else []
    result = run("-v", "--durations=3", "-rf", "--max-worker-restart=99", *args)
    told = result.stdout.str()
    assert "INTERNALERROR" not in told
    assert "\x1b[2J" not in told
    assert len(told) < 100_000
    times = 2 if dist == "each" else 1
    result.assert_outcomes(failed=11 * times, passed=4 * times)
    assert told.count("it was ended because it sent a bad message (") >= 11 * times
    assert "forged" not in told
    assert "unknown event" in told
    assert "it speaks of 'test_it.py::test_good[3]', which it does not run" in told


def test_what_came_together_with_nonsense_tells_what_was_running(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """Messages that have been read at once are handled in order: the start of a test counts."""
    pytester.makepyfile(
        test_it=LIES.partition("@pytest")[0]
        + """
    def test_before(request):
        plugin = interactor(request)
        sock = plugin._items._channel._sock
        class Together:
            "Keeps what is written until the next test has begun."
            kept = b""
            def __getattr__(self, name):
                return getattr(sock, name)
            def sendall(self, data):
                self.kept += data
                if b'"start"' in data:
                    sock.sendall(self.kept + b"\\xff" * 100)
                    time.sleep(30)
        plugin._items._channel._sock = Together()
    def test_blamed(): pass
    def test_good(): pass
    """
    )
    result = run("--dist=load", "-rfp", "--max-worker-restart=9", workers=1)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines_random(
        ["PASSED test_it.py::test_before", "FAILED test_it.py::test_blamed*", "PASSED *test_good"]
    )


def test_reports_of_one_test_without_end(pytester: pytest.Pytester, run: Runner) -> None:
    """What a test tells is held back while it runs."""
    pytester.makepyfile(
        test_it=LIES.partition("@pytest")[0]
        + """
    def test_flood(request):
        plugin = interactor(request)
        event = report(request, sections=[["x", "x" * 16_000_000]])
        while True:
            plugin.outbox.append(event)
            plugin.outbox.flush()
    def test_good():
        pass
    """
    )
    result = run("-q", "-rf", workers=2)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*more than 268435456 bytes without another test*"])


@pytest.mark.slow
@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_a_collection_that_is_longer_than_a_message(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.parametrize("i", range(300), ids=lambda i: f"{i}-" + "x" * 1_000_000)
        def test_it(i): pass
        """
    )
    result = run(f"--forkd-warm={warm}", "-q", "-p", "no:cacheprovider", workers=2)
    result.assert_outcomes(passed=300)


def test_a_collection_that_no_message_holds_is_an_error_that_says_so(
    pytester: pytest.Pytester, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeconftest(
        """
        import pytest_forkd.channel.bounds as bounds
        import pytest_forkd.channel.frames as frames
        frames.MAX_FRAME_BYTES = 100_000
        """
    )
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.parametrize("i", [0], ids=lambda i: "x" * 200_000)
        def test_it(i): pass
        """
    )
    result = run("--forkd-warm=collection", "-q")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    told = result.stdout.str() + result.stderr.str()
    assert "100000 bytes" in told
    assert "INTERNALERROR" not in told
