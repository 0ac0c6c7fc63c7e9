"""Guests that lie: their worker ends with a clear error, and the others go on."""

from __future__ import annotations

import pytest

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from tests.conftest import Runner
from tests.observing import blamed, matching

warm_levels = pytest.mark.parametrize("warm", ["collection", "imports"])

#: What a hostile test needs.
LYING = """
    import json, os, socket, struct, time
    import pytest
    def interactor(config):
        found, = (p for p in config.pluginmanager.get_plugins()
                  if type(p).__name__ == "Interactor")
        return found
    def stream(config):
        return interactor(config)._items._channel._sock
    def say(config, *events):
        plugin = interactor(config)
        plugin.outbox.extend(list(events))
        plugin.outbox.flush()
        time.sleep(60)
"""


@warm_levels
def test_lies_of_a_worker(pytester: pytest.Pytester, forkd: Runner, warm: str) -> None:
    """About tests that it was not given, or in a form that nobody asked for."""
    pytester.makepyfile(
        lying=LYING,
        test_it="""
        from lying import *
        def done(request):
            "The events that end the running test, as if it had passed."
            index = interactor(request.config).item_index
            return [["complete", index, 0.1, None]]
        def test_a_test_that_it_was_not_given(request):
            last = len(request.session.items) - 1
            say(request.config, *done(request), ["start", last, ["test_it.py", 0, "x"]])
        def test_the_same_test_twice(request):
            index = interactor(request.config).item_index
            say(request.config, ["start", index, ["test_it.py", 0, "x"]])
        def test_gives_back_what_is_not_its_own(request):
            say(request.config, ["unscheduled", list(range(len(request.session.items)))])
        def test_a_warning_that_is_a_program(request):
            from pytest_forkd.channel.events import pack_object
            data = {"message_str": "x", "message_module": "os", "message_class_name": "system",
                    "message_args": ("touch owned",), "category_module": "os", "source": None,
                    "category_class_name": "system", "filename": "x", "lineno": 1,
                    "file": None, "line": None}
            say(request.config, ["warning", pack_object(data), "runtest", "x", None], ["nothing"])
        def test_bytes_that_are_no_message(request):
            stream(request.config).sendall(b"\\xff" * 100)
            time.sleep(60)
        def test_a_message_of_two_gigabytes(request):
            stream(request.config).sendall(struct.pack("!bii", 3, 1, 2**31 - 1))
            time.sleep(60)
        def test_a_pickle(request):
            import base64, pickle
            class Program:
                def __reduce__(self):
                    return os.system, ("touch owned",)
            data = base64.b64encode(pickle.dumps(Program())).decode()
            say(request.config, ["finished", data])
        def test_takes_the_guests_stream_over(request):
            from pytest_forkd.channel.exchange import Request
            from pytest_forkd.guest.relay import exchange
            time.sleep(0.3)  # what the stream has not carried by then, it never will
            exchange(Request(99, "mine").encode())
            time.sleep(60)
        @pytest.mark.parametrize("i", range(8))
        def test_good(i):
            pass
        """,
    )
    result = forkd(
        f"--forkd-warm={warm}", "-rf", "--max-worker-restart=99", "--forkd-memory=256", workers=2
    )
    told = result.stdout.str()
    assert "INTERNALERROR" not in told
    lies = [line for line in blamed(result) if "good" not in line]
    # The first one lied about having ended, and then about what it ran: it counts as run.
    assert len(lies) == 7
    assert result.parseoutcomes()["passed"] == 8
    for complaint in (
        "it was not given 'test_it.py::test_good[7]'",
        "nothing was to be given back",
        "nothing: unknown event",
        "has type -1",
        "finished: ",
        "somebody else talks to the guest",
    ):
        assert complaint in told, complaint
    assert matching(result.outlines, "of 2147483647 bytes")
    assert not (pytester.path / "owned").exists()


def test_a_flood_of_events(pytester: pytest.Pytester, forkd: Runner) -> None:
    """Ends when no suite would still go on."""
    pytester.makepyfile(
        lying=LYING,
        test_it="""
        from lying import *
        def test_flood(request):
            plugin = interactor(request.config)
            event = ["logstart", request.node.nodeid, ["x", 0, "x"]]
            while True:
                plugin.outbox.extend([event] * 10_000)
                plugin.outbox.flush()
        def test_good():
            pass
        """,
    )
    result = forkd("-rf", "-q", workers=2)
    result.assert_outcomes(failed=1, passed=1)
    assert "more than 500000 events without another test" in result.stdout.str()
