"""The options of the qemu backend, and the settings that result from them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_forkd.config.lookup import option_or_ini, whole_number

if TYPE_CHECKING:
    from pytest_forkd.qemu.backend import QemuSettings

__all__ = ["add_options", "read_qemu_settings"]

#: MiB that a guest needs to boot and run anything.
_LEAST_MEMORY = 192
_MOST_CPUS = 255


def add_options(parser: pytest.Parser) -> None:
    """Add the options of the qemu backend, and their ini values."""
    group = parser.getgroup("forkd qemu", "workers in virtual machines of this machine's QEMU")
    group.addoption(
        "--forkd-cpus",
        dest="forkd_cpus",
        metavar="N",
        help="Processors of each guest; 1 by default. Ini value: forkd_cpus.",
    )
    group.addoption(
        "--forkd-kernel",
        dest="forkd_kernel",
        metavar="FILE",
        help="Kernel that guests boot; by default one of this machine, else a downloaded one. "
        "Ini value: forkd_kernel.",
    )
    group.addoption(
        "--forkd-network",
        dest="forkd_network",
        metavar="none|user",
        help="Whether guests reach the network, through QEMU ('user'); 'none' by default. "
        "Ini value: forkd_network.",
    )
    parser.addini("forkd_cpus", "Processors of each guest (see --forkd-cpus)")
    parser.addini("forkd_kernel", "Kernel that guests boot (see --forkd-kernel)")
    parser.addini("forkd_network", "Network of the guests (see --forkd-network)")
    parser.addini(
        "forkd_image_include",
        "What guests have besides the Python environment, one a line: paths, or commands (git)",
        "linelist",
        [],
    )


def read_qemu_settings(config: pytest.Config, namespace: Any) -> QemuSettings:
    """The settings of the qemu backend.

    :param namespace: the options as parsed so far.
    :raises pytest.UsageError: on a value that makes no sense.
    """
    from pytest_forkd.qemu.backend import QemuSettings
    from pytest_forkd.qemu.warmup import DEFAULT_MEMORY

    read = partial(option_or_ini, config, namespace)
    network, source = read("forkd_network")
    if network not in (None, "none", "user"):
        raise pytest.UsageError(f"{source}: {network!r} must be one of none, user.")
    kernel, source = read("forkd_kernel")
    if kernel is not None and source.startswith("ini"):
        kernel = str(config.rootpath / kernel)
    return QemuSettings(
        memory=_number(*read("forkd_memory"), DEFAULT_MEMORY, _LEAST_MEMORY, 1 << 20, "MiB"),
        cpus=_number(*read("forkd_cpus"), 1, 1, _MOST_CPUS, "processors"),
        kernel=kernel,
        include=tuple(config.getini("forkd_image_include")),
        network=network == "user",
        environ=tuple(config.getini("forkd_env")),
    )


def _number(value: Any, source: str, default: int, least: int, most: int, what: str) -> int:
    if value is None:
        return default
    return whole_number(
        value,
        least,
        most,
        f"{source}: {str(value)!r} is no number of {what} that a guest can have.\n"
        f"Give one from {least} to {most}.",
    )
