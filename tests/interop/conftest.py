"""Agents of the library and peers written from docs/protocol.md, for the tests in this folder."""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
support = pytest.importorskip("interop_support")

from wire import Region  # noqa: E402

from peer import Peer  # noqa: E402


@pytest.fixture
def make_real():
    made: list[support.Real] = []

    def make(**options) -> support.Real:
        made.append(support.Real(**options))
        return made[-1]

    yield make
    for one in made:
        one.agent.close()


@pytest.fixture
def make_peer():
    made: list[Peer] = []

    def make(name: str = "", key: bytes = b"", abstract: bool = False) -> Peer:
        name = name or f"python-{os.getpid()}-{next(support.number)}"
        peer = Peer(name.encode(), key, f"interop-{name}" if abstract else "")
        peer.regions = [Region(peer.base, len(peer.memory), id=7, generation=3)]
        made.append(peer)
        return peer

    yield make
    for one in made:
        one.close()


@pytest.fixture
def sockets():
    """A folder for path sockets, whose names are limited to 107 bytes (so not tmp_path)."""
    with tempfile.TemporaryDirectory(prefix="nixl") as folder:
        yield folder


@pytest.fixture(params=["tcp", "abstract", "path"])
def path(request) -> str:
    return request.param


@pytest.fixture(params=[b"", support.KEY], ids=["open", "key"])
def key(request) -> bytes:
    return request.param
