"""A client of a forkd daemon's API (v1). It needs httpx, the extra ``pytest-forkd[forkd]``.

A daemon is trusted with the code that it is asked to run, but not with this process: its answers
are read up to a limit and checked field by field. Only idempotent requests are retried. Every wait
has a limit, and the token is sent only to the daemon.
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

#: Bytes of a request's body that a daemon accepts (axum's limit is 2 MB), less some overhead.
MAX_REQUEST = 2_000_000
#: Seconds after which a daemon that does not answer is taken for unreachable.
_REACH_LIMIT = 4.5
#: Seconds for an answer that needs no work.
_ANSWER_LIMIT = 10.0
#: Seconds to restore machines: a flat snapshot takes a fraction of one, a chained one is hashed.
_SPAWN_LIMIT = 60.0
_SPAWN_LIMIT_EACH = 1.0
#: Seconds for a snapshot: a full one writes all of a machine's memory, and several may be made at
#: the same time.
_BRANCH_LIMIT = 300.0
#: Seconds that deleting may take.
_DELETE_LIMIT = 30.0
#: Seconds that the daemon itself waits for a ping, and for an evaluation.
_PING_LIMIT = 2.0 + 3.0
_EVAL_LIMIT = 30.0
#: Seconds to wait in addition to the daemon's own timeout.
_GRACE = 5.0
_SHOWN_TAGS = 20


class Client:
    """A connection to one daemon; may be used from several threads, and as a context manager.

    Every method raises a :class:`~pytest_forkd.forkd.errors.ForkdError` whose text is for the user.

    :param url: the daemon's address.
    :param token: its token, if it needs one.
    :param ca: a file with the certificates to trust, instead of the system's.
    :raises ForkdError: if one of them is invalid.
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
        # In a thread, since no single limit covers the name lookup and all addresses.
        outcome: list[ForkdError | None] = []

        def ask() -> None:
            try:
                answer = self._json("GET", "/healthz", limit=_REACH_LIMIT)
                if as_object(answer, "health").get("ok") is not True:
                    raise RequestFailed(f"what answers at {self.url} is not a forkd daemon.")
                outcome.append(None)
            except ForkdError as exc:
                outcome.append(exc)
            except Exception as exc:  # for example, the client may be closed meanwhile
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
        """Sizes, ancestors and dependents of a snapshot.

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

        :param cascade: also delete all snapshots that depend on it.
        :param force: delete it even if others depend on it, which then become useless.
        :returns: whether it existed.
        :raises RequestFailed: if others depend on it and neither is set; the message names them.
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

        Never retried: if the answer is lost, the machines may exist.

        :param n: how many, 1 to 1000.
        :param per_child_netns: whether each gets a network namespace of its own, which must have
            been set up on the daemon's host.
        :param memory_limit_mib: MiB that the host grants each.
        :param live_fork: whether :meth:`branch` can use mode ``live`` later.
        :raises NoSuchTag: if there is no such snapshot; the message names the existing ones.
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

        :returns: whether it existed.
        """
        return self._delete(f"/v1/sandboxes/{quote(sandbox, '')}")

    def ping(self, sandbox: str) -> dict[str, Any]:
        """The status of the agent in a sandbox (``pid``, ``warmup_ready``, ...).

        :raises ForkdError: if it does not answer (yet).
        """
        path = self._path(sandbox, "ping")
        answer = self._json("POST", path, {}, limit=_PING_LIMIT + _GRACE, sandbox=sandbox)
        return as_object(answer, "ping")

    def exec(self, sandbox: str, args: list[str], timeout_secs: int = 30) -> ExecResult:
        """Run a program in a sandbox to its end.

        :param timeout_secs: seconds after which it is killed.
        :returns: its output; the guest replaces bytes that are not UTF-8.
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

        :param tag: the tag of the snapshot.
        :param mode: ``live`` (for a sandbox spawned with ``live_fork``), ``diff`` or ``full``.
        :param wait: whether to wait until it can be used; false only in mode ``live``.
        :raises RequestFailed: with status 409 if the tag exists, 400 if the mode is not possible.
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
        :param sandbox: the sandbox that the request is about, if any.
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
