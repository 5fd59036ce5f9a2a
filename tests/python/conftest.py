"""Shared by the tests of the Python package: agents and memory that clean up after themselves."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
nixl_agent, nixl_agent_config = nixl.nixl_agent, nixl.nixl_agent_config
nixl_support = pytest.importorskip("nixl_support")
Memory, Pair = nixl_support.Memory, nixl_support.Pair

_counter = itertools.count()


@pytest.fixture
def memory() -> Iterator[Callable[..., Memory]]:
    """Makes Memory objects that are freed when the test ends."""
    made: list[Memory] = []

    def make(size: int, fill: int = 0) -> Memory:
        made.append(Memory(size, fill))
        return made[-1]

    yield make
    for piece in made:
        nixl.free_passthru(piece.address)


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
        if hasattr(agent, "close"):
            agent.close()


@pytest.fixture
def agent(make_agent) -> nixl_agent:
    return make_agent()


@pytest.fixture
def pair(make_agent, memory) -> Pair:
    return Pair(make_agent, memory)


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess]:
    """Runs a program in a fresh interpreter with this package; asserts its exit status."""

    def run(program: str, status: int = 0, timeout: float = 60, **environment: str):
        result = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **environment},
        )
        assert result.returncode == status, f"{result.returncode}: {result.stderr}"
        return result

    return run
