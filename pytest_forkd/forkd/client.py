"""A client of a forkd daemon's API (v1). It needs httpx, the extra ``pytest-forkd[forkd]``.

A daemon is trusted with what it is asked to run, not with this process: what it answers is read up
to a limit and checked field by field. Only what can be repeated without a second effect is tried
again. Nothing waits without a limit, and the token is shown to nobody but the daemon.
"""

from __future__ import annotations

import contextlib
import json
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pytest_forkd.forkd.answers import (
    EvalResult,
    ExecResult,
    Sandbox,
    Snapshot,
    SnapshotDetail,
    as_list,
    as_object,
    field,
)
from pytest_forkd.forkd.errors import (
    Busy,
    ForkdError,
    NoSuchSandbox,
    NoSuchTag,
    NotBootable,
    RequestFailed,
    TooLarge,
    Unauthorized,
    Unreachable,
    shorten,
)
from pytest_forkd.forkd.transport import Transport

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MAX_REQUEST", "Busy", "Client", "EvalResult", "ExecResult", "ForkdError"]
__all__ += ["NoSuchSandbox", "NoSuchTag", "NotBootable", "RequestFailed", "Sandbox", "Snapshot"]
__all__ += ["SnapshotDetail", "TooLarge", "Unauthorized", "Unreachable"]

#: Bytes of a request's body that a daemon takes (2 MB is axum's limit), less some for the rest.
MAX_REQUEST = 2_000_000
#: Seconds until a daemon that does not answer at all is given up.
_REACH_LIMIT = 4.5
#: Seconds for an answer that takes the daemon no work.
_ANSWER_LIMIT = 10.0
#: Seconds to restore machines: a flat snapshot takes a fraction of one, a chained one is hashed.
_SPAWN_LIMIT = 60.0
_SPAWN_LIMIT_EACH = 1.0
#: Seconds for a snapshot: a full one writes all of a machine's memory, and several may be at it.
_BRANCH_LIMIT = 300.0
#: Seconds that deleting may take.
_DELETE_LIMIT = 30.0
#: Seconds that the daemon itself waits: for a ping, for an evaluation.
_PING_LIMIT = 2.0 + 3.0
_EVAL_LIMIT = 30.0
#: Seconds of grace on top of a time-out that the daemon keeps.
_GRACE = 5.0
_SHOWN_TAGS = 20


class Client:
    """A connection to one daemon; may be used from several threads, and as a context manager.

    Every method raises a :class:`~pytest_forkd.forkd.errors.ForkdError` whose text is for the user.

    :param url: the daemon's address.
    :param token: what it wants to be shown, if anything.
    :param ca: a file with the certificates to trust, instead of the system's.
    :raises ForkdError: if one of them makes no sense.
    """

    def __init__(self, url: str, token: str | None = None, ca: str | None = None) -> None:
        self._transport = Transport(url, token, ca)
        self.url = self._transport.url
        self._reached = False

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; safe to call twice."""
        self._transport.close()

    # -- the daemon ----------------------------------------------------------------------------

    def health(self) -> None:
        """Find out whether a daemon answers.

        :raises Unreachable: within 5 seconds, if none does.
        """
        # In a thread, since looking up a name and trying several addresses have no common limit.
        outcome: list[ForkdError | None] = []

        def ask() -> None:
            try:
                answer = self._json("GET", "/healthz", limit=_REACH_LIMIT)
                if as_object(answer, "health").get("ok") is not True:
                    raise RequestFailed(f"what answers at {self.url} is not a forkd daemon.")
                outcome.append(None)
            except ForkdError as exc:
                outcome.append(exc)
            except Exception as exc:  # the client may be closed while this goes on
                outcome.append(RequestFailed(f"{self.url} cannot be asked: {exc!r}"))

        thread = threading.Thread(target=ask, name="forkd-health", daemon=True)
        thread.start()
        thread.join(_REACH_LIMIT)
        if not outcome:
            raise self._transport.unreachable(f"no answer within {_REACH_LIMIT:g} seconds")
        if outcome[0] is not None:
            raise outcome[0]
        self._reached = True

    def version(self) -> str:
        """The daemon's version, such as ``0.5.3``."""
        answer = as_object(self._json("GET", "/version"), "version")
        api = field(answer, "api", str)
        if api != "v1":
            raise RequestFailed(
                f"the daemon at {self.url} speaks {shorten(api)!r}; this release knows v1."
            )
        return shorten(field(answer, "version", str))

    # -- snapshots -----------------------------------------------------------------------------

    def snapshots(self) -> list[Snapshot]:
        """All snapshots that the daemon has."""
        return [Snapshot.read(each) for each in as_list(self._json("GET", "/v1/snapshots"))]

    def snapshot_info(self, tag: str) -> SnapshotDetail:
        """Sizes and relatives of a snapshot.

        :raises NoSuchTag: if there is none.
        """
        try:
            return SnapshotDetail.read(self._json("GET", f"/v1/snapshots/{quote(tag, '')}/info"))
        except RequestFailed as exc:
            if exc.status == 404:
                raise self._no_such_tag(tag) from None
            raise

    def delete_snapshot(self, tag: str, *, cascade: bool = False, force: bool = False) -> bool:
        """Delete a snapshot.

        :param cascade: with all snapshots that depend on it.
        :param force: even if others depend on it, which are of no use then.
        :returns: whether there was one.
        :raises RequestFailed: if others depend on it and neither was said; it names them.
        """
        params = {"cascade": cascade, "force": force}
        query = "&".join(f"{name}=true" for name, wanted in params.items() if wanted)
        path = f"/v1/snapshots/{quote(tag, '')}" + (f"?{query}" if query else "")
        return self._delete(path)

    # -- sandboxes -----------------------------------------------------------------------------

    def spawn(
        self,
        tag: str,
        n: int,
        per_child_netns: bool,
        memory_limit_mib: int | None = None,
        live_fork: bool = False,
    ) -> list[Sandbox]:
        """Restore machines from a snapshot, in one batch.

        Never repeated: an answer that got lost may stand for machines that exist.

        :param n: how many, 1 to 1000.
        :param per_child_netns: each in a network namespace of its own, which the daemon's host has
            ready.
        :param memory_limit_mib: MiB that the host grants each.
        :param live_fork: so that :meth:`branch` can use mode ``live``.
        :raises NoSuchTag: if there is no such snapshot; names those there are.
        :raises NotBootable: if it cannot be restored.
        """
        body: dict[str, Any] = {"snapshot_tag": tag, "n": n, "per_child_netns": per_child_netns}
        if memory_limit_mib is not None:
            body["memory_limit_mib"] = memory_limit_mib
        if live_fork:
            body["live_fork"] = True
        limit = _SPAWN_LIMIT + n * _SPAWN_LIMIT_EACH
        try:
            answer = self._json("POST", "/v1/sandboxes", body, limit=limit)
        except Unreachable as exc:
            raise Unreachable(
                f"{exc}\nMachines may have been made all the same: pytest-forkd doctor --tag {tag} "
                "names those that are on no record."
            ) from None
        except RequestFailed as exc:
            if exc.status == 404:
                raise self._no_such_tag(tag) from None
            if exc.status == 409:
                raise NotBootable(
                    f"snapshot {tag!r} at {self.url} cannot be restored: {exc}.\n"
                    f"Build it anew: pytest-forkd snapshot build --tag {tag}"
                ) from None
            if exc.status == 500:
                hint = (
                    "\nIs there a network namespace for each (netns-setup.sh on the daemon's host)?"
                )
                raise RequestFailed(
                    f"{self.url} cannot restore {n} of snapshot {tag!r}: {exc}"
                    + (hint if per_child_netns and "netns" in str(exc) else ""),
                    500,
                ) from None
            raise
        found = [Sandbox.read(each) for each in as_list(answer)]
        if len(found) != n or len({each.id for each in found}) != n:
            self._discard(found)
            raise RequestFailed(f"{self.url} made {len(found)} sandboxes instead of {n}.")
        return found

    def _discard(self, sandboxes: list[Sandbox]) -> None:
        for each in sandboxes:
            with contextlib.suppress(ForkdError):
                self.delete_sandbox(each.id)

    def sandboxes(self) -> list[Sandbox]:
        """All sandboxes that the daemon runs, whoever made them."""
        return [Sandbox.read(each) for each in as_list(self._json("GET", "/v1/sandboxes"))]

    def delete_sandbox(self, sandbox: str) -> bool:
        """End a sandbox at once.

        :returns: whether there was one.
        """
        return self._delete(f"/v1/sandboxes/{quote(sandbox, '')}")

    def ping(self, sandbox: str) -> dict[str, Any]:
        """What the agent in a sandbox says of itself (``pid``, ``warmup_ready``, ...).

        :raises ForkdError: if it does not answer (yet).
        """
        path = self._path(sandbox, "ping")
        answer = self._json("POST", path, {}, limit=_PING_LIMIT + _GRACE, sandbox=sandbox)
        return as_object(answer, "ping")

    def exec(self, sandbox: str, args: list[str], timeout_secs: int = 30) -> ExecResult:
        """Run a program in a sandbox to its end.

        :param timeout_secs: seconds after which it is ended.
        :returns: its output, in which the guest has replaced what is no UTF-8.
        """
        body = {"args": args, "timeout_secs": timeout_secs}
        path, limit = self._path(sandbox, "exec"), timeout_secs + _GRACE
        return ExecResult.read(self._json("POST", path, body, limit=limit, sandbox=sandbox))

    def eval(self, sandbox: str, code: str, limit: float = _EVAL_LIMIT + _GRACE) -> EvalResult:
        """Evaluate a Python expression inside the agent of a sandbox.

        :param limit: seconds to wait for it; the daemon itself gives up after 30.
        :returns: the ``repr()`` of its value, or the error that it raised.
        """
        path = self._path(sandbox, "eval")
        answer = self._json("POST", path, {"code": code}, limit=limit, sandbox=sandbox)
        return EvalResult.read(answer)

    def branch(self, sandbox: str, tag: str, mode: str, *, wait: bool = True) -> Snapshot:
        """Make a snapshot of a running sandbox.

        :param tag: its name.
        :param mode: ``live`` (for a sandbox spawned with ``live_fork``), ``diff`` or ``full``.
        :param wait: until it can be used; without, only in mode ``live``.
        :raises RequestFailed: with status 409 if there is such a tag, 400 if the mode cannot be.
        """
        body: dict[str, Any] = {"tag": tag, "mode": mode}
        if mode == "live":
            body["wait"] = wait
        path = self._path(sandbox, "branch")
        return Snapshot.read(self._json("POST", path, body, limit=_BRANCH_LIMIT, sandbox=sandbox))

    # -- requests ------------------------------------------------------------------------------

    @staticmethod
    def _path(sandbox: str, action: str) -> str:
        return f"/v1/sandboxes/{quote(sandbox, '')}/{action}"

    def _delete(self, path: str) -> bool:
        try:
            self._transport.send("DELETE", path, None, _DELETE_LIMIT, repeat=True)
        except RequestFailed as exc:
            if exc.status == 404:
                return False
            raise
        return True

    def _json(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        limit: float = _ANSWER_LIMIT,
        sandbox: str | None = None,
    ) -> object:
        """The answer to a request.

        :param limit: seconds to wait for it.
        :param sandbox: the one that it is about.
        """
        if not self._reached and path != "/healthz":
            self.health()
        repeat = method == "GET" or path.endswith("/ping")
        content = None if body is None else json.dumps(body, separators=(",", ":")).encode("ascii")
        try:
            data = self._transport.send(method, path, content, limit, repeat=repeat)
        except RequestFailed as exc:
            if exc.status == 404 and sandbox is not None:
                raise NoSuchSandbox(f"sandbox {sandbox} is gone from {self.url}: {exc}") from None
            raise
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise RequestFailed(f"{self.url} has answered {path}, but not with JSON.") from None

    def _no_such_tag(self, tag: str) -> NoSuchTag:
        try:
            tags = sorted(each.tag for each in self.snapshots())
        except ForkdError:
            return NoSuchTag(f"the daemon at {self.url} has no snapshot {tag!r}.")
        shown = ", ".join(tags[:_SHOWN_TAGS]) + (", ..." if len(tags) > _SHOWN_TAGS else "")
        return NoSuchTag(
            f"the daemon at {self.url} has no snapshot {tag!r}; it has {shown or 'none at all'}.\n"
            "Build one with: pytest-forkd snapshot build"
        )
