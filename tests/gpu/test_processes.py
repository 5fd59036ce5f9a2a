"""GPU memory between two processes: over the stream lane by staging, and over the host lane."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

import gpu_support
import nixl
import pytest
from gpu_support import pattern

HERE = pathlib.Path(__file__).parent
SIZE = (9 if gpu_support.is_standin() else 21) * (1 << 20) + 4096  # slices, and a piece


class Peer:
    """gpu_peer.py in a process of its own."""

    def __init__(self, kind: str, size: int, lanes: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, HERE / "gpu_peer.py", kind, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NIXL_LANES": lanes},
        )
        self.kind = kind
        self.name, self.address = self._read()

    def _read(self):
        line = self.process.stdout.readline()
        assert line, f"the peer has ended with {self.process.wait()}"
        return json.loads(line)

    def ask(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def peer() -> Iterator:
    made: list[Peer] = []

    def make(kind: str, size: int = SIZE, lanes: str = "") -> Peer:
        made.append(Peer(kind, size, lanes))
        return made[-1]

    yield make
    for one in made:
        one.close()


def finish(agent, handle, seconds: float = 60) -> str:
    end = time.monotonic() + seconds
    state = agent.check_xfer_state(handle)
    while state == "PROC" and time.monotonic() < end:
        state = agent.check_xfer_state(handle)
    return state


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Near:
    """This side: an agent and memory."""

    def __init__(self, make_agent, gpu, kind: str, peer: Peer, lanes: str) -> None:
        self.agent = make_agent("near", lanes=lanes)
        self.host = nixl.alloc(SIZE) if kind == "host" else None
        self.gpu = None if self.host is not None else gpu(SIZE)
        self.address = self.host.address if self.host is not None else self.gpu.address
        self.kind = "DRAM" if self.host is not None else "VRAM"
        self.agent.register_memory([(self.address, SIZE, 0, "")], self.kind)
        self.peer = peer
        self.know()

    def know(self) -> None:
        self.agent.add_remote_agent(base64.b64decode(self.peer.ask("metadata")))

    def set(self, data: bytes) -> None:
        if self.host is not None:
            self.host[:] = data
        else:
            self.gpu.set(data)

    def get(self) -> bytes:
        return bytes(self.host) if self.host is not None else self.gpu.get()

    def prepare(self, op: str, pieces, notif: bytes = b""):
        near = [(self.address + a, size, 0) for a, _, size in pieces]
        far = [(self.peer.address + b, size, 0) for _, b, size in pieces]
        return self.agent.initialize_xfer(
            op,
            self.agent.get_xfer_descs(near, self.kind),
            self.agent.get_xfer_descs(far, "DRAM" if self.peer.kind == "host" else "VRAM"),
            self.peer.name,
            notif,
        )

    def move(self, op: str, pieces, notif: bytes = b"") -> str:
        handle = self.prepare(op, pieces, notif)
        self.agent.transfer(handle)
        state = finish(self.agent, handle)
        self.agent.release_xfer_handle(handle)
        return state


PAIRS = ["gpu-gpu", "gpu-host", "host-gpu", "gpu-alloc"]


@pytest.mark.parametrize("lanes", ["stream", ""])
@pytest.mark.parametrize("pair", PAIRS)
def test_bytes_arrive(make_agent, gpu, peer, pair: str, lanes: str) -> None:
    left, _, right = pair.partition("-")
    far = peer(right, lanes=lanes)
    near = Near(make_agent, gpu, left, far, lanes)
    near.set(pattern(SIZE, 5))
    assert near.move("WRITE", [(0, 0, SIZE)], b"written") == "DONE"
    assert far.ask("hash", 0, SIZE) == sha(pattern(SIZE, 5))
    end = time.monotonic() + 30
    while not (notifs := far.ask("notifs")) and time.monotonic() < end:
        pass
    assert notifs == ["written"]
    far.ask("set", 6)
    assert near.move("READ", [(0, 0, SIZE)]) == "DONE"
    assert near.get() == pattern(SIZE, 6)
    # Many pieces of odd sizes, in another order.
    near.set(bytes(SIZE))
    pieces = [(i * 3000 + 1, (2999 - i) * 3000 + 5, 2000 + i % 97) for i in range(3000)]
    assert near.move("READ", pieces) == "DONE"
    got, sent = near.get(), pattern(SIZE, 6)
    assert all(got[a : a + size] == sent[b : b + size] for a, b, size in pieces)


@pytest.mark.parametrize("lanes", ["stream", ""])
def test_a_deregistered_region_is_refused(make_agent, gpu, peer, lanes: str) -> None:
    far = peer("gpu", lanes=lanes)
    near = Near(make_agent, gpu, "gpu", far, lanes)
    far.ask("set", 7)
    handle = near.prepare("WRITE", [(0, 0, SIZE)])
    near.agent.transfer(handle)
    assert finish(near.agent, handle) == "DONE"
    before = far.ask("hash", 0, SIZE)
    far.ask("deregister")
    near.set(pattern(SIZE, 8))
    with contextlib.suppress(nixl.nixlError):
        near.agent.transfer(handle)
        assert finish(near.agent, handle) == "ERR"
    assert far.ask("hash", 0, SIZE) == before
    near.agent.release_xfer_handle(handle)


@pytest.mark.parametrize("lanes", ["stream", ""])
def test_the_peer_dies(make_agent, gpu, peer, lanes: str) -> None:
    far = peer("gpu", lanes=lanes)
    near = Near(make_agent, gpu, "gpu", far, lanes)
    handle = near.prepare("WRITE", [(0, 0, SIZE)])
    near.agent.transfer(handle)
    assert finish(near.agent, handle) == "DONE"
    far.process.kill()
    far.process.wait()
    with contextlib.suppress(nixl.nixlError):
        near.agent.transfer(handle)
        assert finish(near.agent, handle) in ("ERR", "DONE")
    near.agent.release_xfer_handle(handle)


@pytest.mark.parametrize("lanes", ["stream", ""])
@pytest.mark.parametrize("pair", ["gpu-gpu", "host-gpu"])
def test_figures(make_agent, gpu, peer, capsys, pair: str, lanes: str) -> None:
    left, _, right = pair.partition("-")
    far = peer(right, lanes=lanes)
    near = Near(make_agent, gpu, left, far, lanes)
    size = SIZE if gpu_support.is_standin() else 16 << 20
    handle = near.prepare("WRITE", [(0, 0, size)])
    taken = []
    for _ in range(9):
        begin = time.perf_counter()
        near.agent.transfer(handle)
        assert finish(near.agent, handle) == "DONE"
        taken.append(time.perf_counter() - begin)
    lane = near.agent.explain(handle)
    with capsys.disabled():
        rate = size / sorted(taken)[4] / 1e9
        print(f"\nFIGURE two processes {pair} lanes={lanes or 'all'}: {rate:.2f} GB/s; {lane}")
    near.agent.release_xfer_handle(handle)
