"""What was opened before a fork, in words."""

from __future__ import annotations

import os
import socket
import sys
import types
from collections.abc import Iterable, Iterator

import pytest

from pytest_forkd.parent.watch.resources import OpenFiles, resource_findings

pytestmark = pytest.mark.skipif("sys.platform != 'linux'", reason="/proc tells what is open")


class Opened(OpenFiles):
    """What a process has opened, as far as a test says: few machines have a GPU."""

    def __init__(self, *opened: tuple[int, str]) -> None:
        self._opened = list(opened)

    def new(self, known: Iterable[int]) -> list[tuple[int, str]]:
        return self._opened


@pytest.fixture
def cuda_socket() -> Iterator[int]:
    """A socket as CUDA opens one, of which others know nothing."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0cuda-uvmfd-4026531836-{os.getpid()}\0")
        yield sock.fileno()


def test_a_gpu_that_has_been_used_is_the_reason_and_not_what_its_driver_has_opened(
    cuda_socket: int,
) -> None:
    """As seen with PyTorch, JAX and CuPy on an H100: an event loop was named."""
    found = resource_findings(
        Opened(
            (10, "anon_inode:[eventpoll]"),
            (11, "pipe:[4711]"),
            (12, "/dev/nvidiactl"),
            (13, "/dev/nvidia-uvm"),
            (14, "/dev/nvidia-uvm"),
            (15, "/dev/nvidia0"),
            (cuda_socket, "socket:[4712]"),
        ),
        [],
    )
    assert [each.what for each in found] == [
        "the GPU has been used (/dev/nvidia-uvm is open), and no fork of this process could use it"
    ]


def test_what_else_is_open_beside_a_gpu_is_told(cuda_socket: int) -> None:
    found = resource_findings(Opened((10, "/dev/kfd"), (11, "/data/file.txt")), [])
    assert [each.what.split(",")[0] for each in found] == [
        "the GPU has been used (/dev/kfd is open)",
        "file /data/file.txt is open",
    ]
    [alone] = resource_findings(Opened((cuda_socket, "socket:[4712]")), [])
    assert alone.what.startswith(f"a socket at @cuda-uvmfd-4026531836-{os.getpid()} is open, and")


def test_who_uses_pytorch_is_told_how_to_ask_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    [found] = resource_findings(Opened((10, "/dev/nvidia-uvm")), [])
    assert found.what.endswith("unless PYTORCH_NVML_BASED_CUDA_CHECK=1 is set")


def test_asking_which_gpus_there_are_is_no_finding() -> None:
    """NVML, which does that, opens these."""
    assert resource_findings(Opened((10, "/dev/nvidiactl"), (11, "/dev/nvidia0")), []) == []
