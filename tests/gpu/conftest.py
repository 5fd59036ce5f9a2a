"""Fixtures of the GPU tests. Without a GPU every one of them is skipped, with the reason."""

from __future__ import annotations

import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
nixl = pytest.importorskip("nixl", reason="the Python module is not built")

import gpu_support  # noqa: E402
from nixl._api import nixl_agent, nixl_agent_config  # noqa: E402

_counter = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = gpu_support.why_no_gpu()
    here = pathlib.Path(__file__).parent
    for item in items:
        if reason and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"no GPU: {reason}"))


@pytest.fixture
def make_agent() -> Iterator[Callable[..., nixl_agent]]:
    """Makes agents of a fresh name, closed when the test ends."""
    made: list[nixl_agent] = []

    def make(name: str = "agent", backends: tuple[str, ...] = ("UCX",), **options) -> nixl_agent:
        config = nixl_agent_config(backends=list(backends), **options)
        made.append(nixl_agent(f"{name}-{os.getpid()}-{next(_counter)}", config))
        return made[-1]

    yield make
    for agent in made:
        agent.close()


@pytest.fixture
def gpu() -> Iterator[Callable[..., gpu_support.GpuMemory]]:
    """Makes memory of GPUs that is freed when the test ends."""
    made: list[gpu_support.GpuMemory] = []

    def make(size: int, device: int = 0, fill: int = 0) -> gpu_support.GpuMemory:
        made.append(gpu_support.GpuMemory(size, device, fill))
        return made[-1]

    yield make
    for memory in made:
        memory.free()


@pytest.fixture
def other_gpu() -> int:
    """A second GPU."""
    if len(gpu_support.gpus()) < 2:
        pytest.skip("there is only one GPU")
    return 1
