"""Deletes what a run has made at forkd daemons: at its end, after its death, or much later."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from pytest_forkd.forkd.access import read_token
from pytest_forkd.forkd.client import Client
from pytest_forkd.forkd.errors import ForkdError, RequestFailed
from pytest_forkd.forkd.records import Records, Run, is_run_tag

__all__ = ["Outcome", "connect_for", "delete_recorded"]


@dataclass
class Outcome:
    """The result of deleting a run's leftovers.

    :ivar deleted: how many sandboxes and branches were deleted.
    :ivar gone: how many were gone already.
    :ivar errors: why others could not be deleted, one line per daemon.
    """

    deleted: int = 0
    gone: int = 0
    errors: list[str] = field(default_factory=list)


def connect_for(
    run: Run, token_file: str | None = None, ca: str | None = None
) -> Callable[[str], Client]:
    """A function that makes clients for a run's daemons.

    It uses the token file and certificates given here, else those that the run has used.

    :returns: a function that takes a URL and returns a client.
    """

    def connect(url: str) -> Client:
        file = token_file or (None if os.environ.get("FORKD_TOKEN") else run.token_file)
        return Client(url, read_token(file, os.environ), ca or run.ca)

    return connect


def delete_recorded(records: Records, run: Run, connect: Callable[[str], Client]) -> Outcome:
    """Delete what a run has recorded, sandboxes first, and remove it from the record.

    If a daemon cannot be reached, its entries stay on the record.

    :param connect: makes a client for a URL.
    """
    outcome = Outcome()
    for url in dict.fromkeys(url for url, _name in [*run.sandboxes, *run.branches]):
        try:
            with connect(url) as client:
                client.health()
                _delete_at(client, url, records, run, outcome)
        except ForkdError as exc:
            outcome.errors.append(str(exc))
    return outcome


def _delete_at(client: Client, url: str, records: Records, run: Run, outcome: Outcome) -> None:
    """Delete what is at one daemon; go on if it refuses to delete something."""
    sandboxes = [each for each in run.sandboxes if each[0] == url]
    branches = [each for each in run.branches if each[0] == url]
    done: list[tuple[str, str]] = []
    try:
        for entry in [*sandboxes, *branches]:
            try:
                if entry in sandboxes:
                    _count(outcome, client.delete_sandbox(entry[1]))
                else:
                    _delete_branch(client, entry[1], outcome)
            except RequestFailed as exc:
                outcome.errors.append(f"{entry[1]} at {url}: {exc}")
            else:
                done.append(entry)
    finally:
        records.remove(run, sandboxes=done, branches=done)


def _delete_branch(client: Client, tag: str, outcome: Outcome) -> None:
    """Delete a branch and its sandboxes, which are this run's: no other run knows its tag."""
    if is_run_tag(tag):
        for sandbox in client.sandboxes():
            if sandbox.snapshot_tag == tag:  # not recorded if the daemon's answer was lost
                _count(outcome, client.delete_sandbox(sandbox.id))
    _count(outcome, client.delete_snapshot(tag))


def _count(outcome: Outcome, deleted: bool) -> None:
    if deleted:
        outcome.deleted += 1
    else:
        outcome.gone += 1
