"""Records what a run makes at its daemons before it is used, and deletes it at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from pytest_forkd.forkd.cleaning import Outcome, delete_recorded
from pytest_forkd.forkd.client import Client
from pytest_forkd.forkd.errors import ForkdError
from pytest_forkd.forkd.reaper import Reaper
from pytest_forkd.forkd.records import Records, make_run_tag

__all__ = ["Ledger"]


class Ledger:
    """The sandboxes and branches of a run; may be used from several threads.

    It starts a reaper process, which deletes them if this process is killed. So make the ledger
    before the first sandbox.

    :param token_file: the file with the token; ``None`` if the token is in the environment.
    :param ca: the file with the certificates to trust.
    :raises ForkdError: if nothing can be recorded, or the reaper does not start.
    """

    def __init__(self, token_file: str | None = None, ca: str | None = None) -> None:
        self._records = Records()
        self._run = self._records.begin(token_file, ca)
        try:
            self._reaper = Reaper(str(self._run.path), token_file, ca)
        except OSError as exc:
            raise ForkdError(
                f"cannot start the process that deletes sandboxes should pytest be killed: {exc}"
            ) from exc

    def add_sandboxes(self, url: str, sandboxes: Iterable[str]) -> None:
        """Record sandboxes that were just made, before they are used.

        :raises ForkdError: if that fails; the caller must then delete them.
        """
        self._records.add(self._run, sandboxes=[(url, each) for each in sandboxes])

    def add_branch(self, url: str) -> str:
        """Make and record a new tag for a branch, before the daemon is asked for the branch.

        :raises ForkdError: if that fails.
        """
        tag = make_run_tag()
        self._records.add(self._run, branches=[(url, tag)])
        return tag

    def forget_sandbox(self, url: str, sandbox: str) -> None:
        """Remove the record of a sandbox that was deleted."""
        self._records.remove(self._run, sandboxes=[(url, sandbox)])

    def close(self, connect: Callable[[str], Client]) -> Outcome:
        """Delete all that is left, and release the reaper; safe to call twice.

        If a daemon cannot be reached, the reaper keeps trying for a while. What it cannot delete,
        either, stays on record for ``pytest-forkd prune``.

        :param connect: makes a client for a URL.
        """
        outcome = Outcome()
        try:
            outcome = delete_recorded(self._records, self._run, connect)
        finally:
            with contextlib.suppress(OSError):
                self._reaper.close(timeout=0.0 if outcome.errors else 5.0)
        return outcome
