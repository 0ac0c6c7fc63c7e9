"""The options of the forkd backend, and the settings that result from them."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_forkd.config.lookup import option_or_ini, whole_number

if TYPE_CHECKING:
    from pytest_forkd.forkd.backend import ForkdSettings
    from pytest_forkd.machines.working_tree import SyncSettings

__all__ = ["add_options", "read_forkd_settings", "read_sync_settings"]


def add_options(parser: pytest.Parser) -> None:
    """Add the options of the forkd backend, and their ini values."""
    group = parser.getgroup("forkd daemon", "workers in microVMs of forkd daemons")
    group.addoption(
        "--forkd-url",
        dest="forkd_url",
        metavar="URL",
        action="append",
        help="Address of a forkd daemon; several share the workers. By default the environment "
        "variable FORKD_URL, else http://127.0.0.1:8889. Ini value: forkd_url, one a line.",
    )
    group.addoption(
        "--forkd-token-file",
        dest="forkd_token_file",
        metavar="FILE",
        help="File with the daemon's token; else it is the environment variable FORKD_TOKEN. "
        "Ini value: forkd_token_file.",
    )
    group.addoption(
        "--forkd-ca",
        dest="forkd_ca",
        metavar="FILE",
        help="Certificates to trust for https, instead of the system's. Ini value: forkd_ca.",
    )
    group.addoption(
        "--forkd-tag",
        dest="forkd_tag",
        metavar="TAG",
        help="Snapshot that machines are restored from; by default the one that 'pytest-forkd "
        "snapshot build' makes for the project as it is. Ini value: forkd_tag.",
    )
    group.addoption(
        "--forkd-netns",
        dest="forkd_netns",
        action="store_const",
        const=True,
        help="Give each machine a network namespace of its own, which the daemon's host has ready "
        "(the default). Ini value: forkd_netns.",
    )
    group.addoption(
        "--no-forkd-netns",
        dest="forkd_netns",
        action="store_const",
        const=False,
        help="Let machines share one network device.",
    )
    group.addoption(
        "--forkd-memory",
        dest="forkd_memory",
        metavar="MIB",
        help="Memory that the daemon's host grants each machine, in MiB. Ini value: forkd_memory.",
    )
    group.addoption(
        "--forkd-sync",
        dest="forkd_sync",
        action="store_const",
        const=True,
        help="Send machines what differs from the working tree (the default). "
        "Ini value: forkd_sync.",
    )
    group.addoption(
        "--no-forkd-sync",
        dest="forkd_sync",
        action="store_const",
        const=False,
        help="Take the project as it is in the snapshot.",
    )
    group.addoption(
        "--forkd-allow-stale",
        dest="forkd_allow_stale",
        action="store_true",
        default=None,
        help="Use a snapshot though the dependencies that it was made from have changed.",
    )
    parser.addini("forkd_sync", "Send machines the working tree (see --forkd-sync)")
    parser.addini(
        "forkd_sync_exclude",
        "Patterns of files that machines are not sent, one a line: data, docs/*.png",
        "linelist",
        [],
    )
    parser.addini(
        "forkd_sync_include",
        "Patterns of files that machines are sent though git ignores them, one a line",
        "linelist",
        [],
    )
    parser.addini("forkd_url", "forkd daemons, one a line (see --forkd-url)", "linelist", [])
    parser.addini("forkd_token_file", "File with the daemon's token (see --forkd-token-file)")
    parser.addini("forkd_ca", "Certificates to trust for https (see --forkd-ca)")
    parser.addini("forkd_tag", "Snapshot that machines are restored from (see --forkd-tag)")
    parser.addini("forkd_netns", "A network namespace for each machine (see --forkd-netns)")
    parser.addini("forkd_memory", "MiB of memory for each machine (see --forkd-memory)")
    parser.addini(
        "forkd_env",
        "Patterns of environment variables that machines get, one a line: API_*",
        "linelist",
        [],
    )


def read_forkd_settings(config: pytest.Config, namespace: Any) -> ForkdSettings:
    """The settings of the forkd backend.

    :param namespace: the options as parsed so far.
    :raises pytest.UsageError: on a value that makes no sense.
    """
    from pytest_forkd.forkd.access import read_token, read_urls
    from pytest_forkd.forkd.backend import ForkdSettings
    from pytest_forkd.forkd.built import choose_tag
    from pytest_forkd.forkd.errors import ForkdError

    read = partial(option_or_ini, config, namespace)
    tag, _source = read("forkd_tag")
    token_file, _source = read("forkd_token_file")
    ca, _source = read("forkd_ca")
    try:
        urls = read_urls(*read("forkd_url"), os.environ)
        if not tag:
            choice = choose_tag(str(config.rootpath))
            if choice.stale is not None and not namespace.forkd_allow_stale:
                raise ForkdError(
                    f"the snapshot is stale: {choice.tag}: {choice.stale}.\nBuild it anew: "
                    f"pytest-forkd snapshot build --force --tag {choice.tag}\n"
                    "or use it all the same: --forkd-allow-stale"
                )
            tag = choice.tag
    except ForkdError as exc:
        raise pytest.UsageError(f"pytest-forkd: {exc}") from exc
    return ForkdSettings(
        urls=tuple(urls),
        tag=str(tag),
        token=lambda: read_token(token_file, os.environ),
        token_file=token_file,
        ca=ca,
        netns=_flag(*read("forkd_netns")),
        memory=_mebibytes(*read("forkd_memory")),
        environ=tuple(config.getini("forkd_env")),
    )


def read_sync_settings(config: pytest.Config, namespace: Any) -> SyncSettings:
    """The settings for sending the working tree to machines.

    :param namespace: the options as parsed so far.
    :raises pytest.UsageError: on a value that makes no sense.
    """
    from pytest_forkd.machines.working_tree import SyncSettings

    return SyncSettings(
        folder=str(config.rootpath),
        enabled=_flag(*option_or_ini(config, namespace, "forkd_sync")),
        exclude=tuple(config.getini("forkd_sync_exclude")),
        include=(*config.getini("forkd_sync_include"), *_cache_folder(config)),
        allow_stale=bool(namespace.forkd_allow_stale),
    )


def _cache_folder(config: pytest.Config) -> list[str]:
    """Patterns for pytest's cache, which ``--lf``, ``--nf`` and ``--sw`` need in machines, too."""
    try:
        folder = os.path.normpath(str(config.getini("cache_dir")))
    except (KeyError, ValueError):
        return []  # -p no:cacheprovider
    if os.path.isabs(folder) or folder.startswith(".."):
        return []
    return [f"{folder}/v/cache"]


def _flag(value: Any, source: str) -> bool:
    if value is None or isinstance(value, bool):
        return value is not False
    text = str(value).strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise pytest.UsageError(f"{source}: {value!r} is neither true nor false.")


def _mebibytes(value: Any, source: str) -> int | None:
    if value is None:
        return None
    complaint = f"{source}: {value!r} is no size for a machine's memory; give MiB, such as 1024."
    return whole_number(value, 16, (1 << 24) - 1, complaint)
