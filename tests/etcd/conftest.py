"""etcd servers, agents in this process that use them, and agents in others."""

from __future__ import annotations

import itertools
import os
import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "faults"), str(HERE.parent / "interop")]

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
pytest.importorskip("numpy")

import etcd_support as support  # noqa: E402
import faults_support  # noqa: E402

_counter = itertools.count()
if support.program() is None:
    collect_ignore_glob = ["test_*.py"]


def needs_etcd() -> None:
    if reason := support.lacking():
        pytest.skip(reason)


@pytest.fixture
def make_etcd():
    needs_etcd()
    made: list[support.Etcd] = []

    def make(**options) -> support.Etcd:
        made.append(support.one_etcd(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def shared_etcd():
    needs_etcd()
    made = support.one_etcd()
    yield made
    made.close()


@pytest.fixture
def etcd(shared_etcd, monkeypatch):
    """A server that tests share, with a namespace of this test in the environment."""
    monkeypatch.setenv("NIXL_ETCD_ENDPOINTS", shared_etcd.endpoint)
    shared_etcd.space = f"/test{next(_counter)}-{os.getpid()}"
    monkeypatch.setenv("NIXL_ETCD_NAMESPACE", shared_etcd.space)
    return shared_etcd


@pytest.fixture
def cluster():
    needs_etcd()
    made = support.cluster_of(3)
    yield made
    for one in made:
        one.close()


@pytest.fixture
def agent_at():
    """Makes agents: agent_at(name, etcd={...}, ...)."""
    made = []

    def make(name: str, backends=("UCX",), **options):
        config = nixl.nixl_agent_config(backends=list(backends), **options)
        made.append(nixl.nixl_agent(name, config))
        return made[-1]

    yield make
    for agent in made:
        agent.close()


@pytest.fixture
def far_at():
    """The same in other processes: a faults_support.Far."""
    made = []

    def make(name: str, **options):
        options.setdefault("backends", ["UCX"])
        made.append(faults_support.Far(name=name, size=65536, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
