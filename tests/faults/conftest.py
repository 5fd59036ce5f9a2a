"""Agents in this and in other processes, proxies and network namespaces for the fault tests."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "interop")]

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
pytest.importorskip("numpy")
pytest.register_assert_rewrite("lane_tests", "programs")
support = pytest.importorskip("faults_support")

import wire  # noqa: E402
from proxy import Proxy  # noqa: E402


@pytest.fixture
def make_far():
    yield from support.made_by(support.Far)


@pytest.fixture
def make_near():
    yield from support.made_by(support.Near)


@pytest.fixture(params=["WRITE", "READ"])
def operation(request) -> str:
    return request.param


@pytest.fixture
def pair(request, make_near, make_far):
    """Makes a Near that knows a Far, by the SIZE and the options_of() of the test's file."""

    def make(**more):
        size, options = request.module.SIZE, request.module.options_of(**more)
        near, far = make_near(size, **options), make_far(size, **options)
        near.add_metadata_of(far)
        return near, far

    return make


@pytest.fixture
def make_proxy():
    """A proxy before a Far, and the metadata that leads through it."""
    made: list[Proxy] = []

    def make(far) -> tuple[Proxy, bytes]:
        made.append(Proxy("127.0.0.1", wire.Blob.decode(far.metadata).port))
        return made[-1], support.by_way_of(far.metadata, "127.0.0.1", made[-1].port)

    yield make
    for one in made:
        one.close()


@pytest.fixture
def companion(make_far):
    """Transfers of an agent with another peer, which must not notice anything."""
    made: list[support.Companion] = []

    def make(near) -> support.Companion:
        made.append(support.Companion(near, make_far()))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture(params=["host", "mapped", "stream"])
def transport(request) -> str:
    """How bytes get to the other process of this host."""
    return request.param


class Wire:
    """Two network namespaces with a cable between them."""

    def __init__(self) -> None:
        tag = f"nx{os.getpid()}"
        self.near, self.far = f"{tag}a", f"{tag}b"
        self.near_address, self.far_address = "10.97.0.1", "10.97.0.2"
        sides = [(self.near, self.near_address), (self.far, self.far_address)]
        for name, _ in sides:
            self.run("ip", "netns", "add", name)
        self.run(
            *("ip", "link", "add", "cable", "netns", self.near),
            *("type", "veth", "peer", "name", "cable", "netns", self.far),
        )
        for name, address in sides:
            self.run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            self.run("ip", "-n", name, "link", "set", "cable", "up")
            self.run("ip", "-n", name, "link", "set", "lo", "up")

    @staticmethod
    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, text=True)

    def inside(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", name]

    def unplug(self) -> None:
        self.run("ip", "-n", self.far, "link", "set", "cable", "down")

    def plug(self) -> None:
        self.run("ip", "-n", self.far, "link", "set", "cable", "up")

    def close(self) -> None:
        for name in (self.near, self.far):
            with contextlib.suppress(subprocess.CalledProcessError):
                self.run("ip", "netns", "del", name)


@pytest.fixture
def network():
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    try:
        made = Wire()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
    yield made
    made.close()


@pytest.fixture
def unknown_peer():
    """A socket connected to an agent, by its metadata: over "tcp" or the "abstract" socket."""
    opened: list[socket.socket] = []

    def connect(metadata: bytes, transport: str) -> socket.socket:
        blob = wire.Blob.decode(metadata)
        if transport == "tcp":
            sock = socket.create_connection(("127.0.0.1", blob.port), 10)
        else:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(10)
            sock.connect(b"\0" + blob.abstract)
        opened.append(sock)
        return sock

    yield connect
    for one in opened:
        one.close()
