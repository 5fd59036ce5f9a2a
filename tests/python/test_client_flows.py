"""What serving engines do with the package, from the call to the bytes, in two processes.

Each test is one client's way through the interface, in our own words: an inference engine that
pulls or pushes paged blocks, a cache that keeps pages in files, and their reading of errors.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time

import pytest
from nixl._api import nixl_agent, nixl_agent_config, nixl_thread_sync_t, nixlBind

np = pytest.importorskip("numpy", reason="the clients' flows are in NumPy arrays")

LAYERS, BLOCKS, SIZE = 4, 64, 2048

# The other process: registers its blocks (the first byte of each says which it is), tells where,
# then answers on its standard output what it is asked on its standard input.
PEER = """
import base64, json, sys
import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

layers, blocks, size = json.loads(sys.argv[1])
cache = np.zeros((layers * blocks, size), np.uint8)
cache[:] = (np.arange(layers * blocks) % 251).astype(np.uint8)[:, None]
agent = nixl_agent("peer", nixl_agent_config(num_threads=4, capture_telemetry=True))
descs = agent.get_reg_descs([(cache.ctypes.data, cache.nbytes, 0, "")], "DRAM")
agent.register_memory(descs, backends=["UCX"])
meta = base64.b64encode(agent.get_agent_metadata()).decode()
print(json.dumps([meta, cache.ctypes.data]), flush=True)
for line in sys.stdin:
    if line.startswith("notifs"):
        got = {name: [m.decode() for m in sent] for name, sent in agent.get_new_notifs().items()}
        print(json.dumps(got), flush=True)
    elif line.startswith("first"):
        print(json.dumps(cache[:, 0].tolist()), flush=True)
    elif line.startswith("send"):
        agent.send_notif(line.split()[1], notif_msg=b"HB:1")
        print("null", flush=True)
"""


class Peer:
    """The other process and what it told of itself."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PEER, json.dumps([LAYERS, BLOCKS, SIZE])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        meta, self.address = json.loads(self.process.stdout.readline())
        self.metadata = base64.b64decode(meta)

    def ask(self, what: str):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def peer():
    other = Peer()
    yield other
    other.kill()
    other.process.stdin.close()
    other.process.stdout.close()


def rows(base: int, dtype=np.uint64):
    """One strided row a layer: (address, length, device id, stride, count)."""
    layer = BLOCKS * SIZE
    return np.array([[base + i * layer, SIZE, 0, SIZE, BLOCKS] for i in range(LAYERS)], dtype)


def flat(blocks):
    """Block numbers of one layer as flat indices over all layers."""
    return (np.arange(LAYERS)[:, None] * BLOCKS + np.asarray(blocks)[None, :]).ravel()


def finish(agent, handle, seconds: float = 20) -> str:
    end = time.monotonic() + seconds
    state = "PROC"
    while state == "PROC" and time.monotonic() < end:
        state = agent.check_xfer_state(handle)
    return state


class Engine:
    """This process: a cache of its own, both sides prepared."""

    def __init__(self, make_agent, peer: Peer) -> None:
        self.cache = np.zeros((LAYERS * BLOCKS, SIZE), np.uint8)
        self.agent = make_agent("engine", capture_telemetry=True, num_threads=4)
        base = self.cache.ctypes.data
        self.reg = self.agent.register_memory([(base, self.cache.nbytes, 0, "")], "DRAM")
        self.near = self.agent.prep_xfer_dlist("NIXL_INIT_AGENT", rows(base), mem_type="DRAM")
        self.name = self.agent.add_remote_agent(peer.metadata)
        far = rows(peer.address)
        self.far = self.agent.prep_xfer_dlist(self.name, far, mem_type="DRAM")


@pytest.fixture
def engine(make_agent, peer):
    return Engine(make_agent, peer)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_pulling_blocks_with_a_request_id(engine, peer, dtype):
    rng = np.random.default_rng(7)
    ours = flat(rng.permutation(BLOCKS)[:20]).astype(dtype)
    theirs = flat(rng.permutation(BLOCKS)[:20]).astype(dtype)
    agent = engine.agent
    handle = agent.make_prepped_xfer(
        "READ", engine.near, ours, engine.far, theirs, notif_msg=b"request-1:1"
    )
    agent.transfer(handle)
    assert finish(agent, handle) == "DONE"
    figures = agent.get_xfer_telemetry(handle)
    assert figures.totalBytes == ours.size * SIZE
    assert figures.descCount == ours.size
    agent.release_xfer_handle(handle)
    assert (engine.cache[ours] == (theirs % 251).astype(np.uint8)[:, None]).all()
    untouched = np.setdiff1d(np.arange(LAYERS * BLOCKS), ours)
    assert not engine.cache[untouched].any()
    got = {}
    end = time.monotonic() + 10
    while not got and time.monotonic() < end:
        got = peer.ask("notifs")
    assert got == {agent.name: ["request-1:1"]}


def test_pushing_blocks_and_an_answer_by_notification(engine, peer):
    agent = engine.agent
    engine.cache[:] = 255
    indices = flat([3, 5])
    handles = []
    for _ in range(8):  # handles are kept, not released: their end does it
        handles.append(agent.make_prepped_xfer("WRITE", engine.near, indices, engine.far, indices))
        assert handles[-1]
        assert agent.transfer(handles[-1]) in ("DONE", "PROC")
    assert [finish(agent, handle) for handle in handles] == ["DONE"] * 8
    handles.clear()
    first = np.array(peer.ask("first"))
    assert (first[indices] == 255).all() and (first == 255).sum() == indices.size
    agent.send_notif(engine.name, b"REG:2")  # what makes us known to it
    got = {}
    end = time.monotonic() + 10
    while not got and time.monotonic() < end:
        got = peer.ask("notifs")
    assert got == {agent.name: ["REG:2"]}
    peer.ask(f"send {agent.name}")  # the peer never added our metadata
    got = {}
    end = time.monotonic() + 10
    while not got and time.monotonic() < end:
        got = agent.get_new_notifs()
    assert got == {"peer": [b"HB:1"]}


def test_a_lost_peer_is_told_by_class_name_and_text(engine, peer):
    agent = engine.agent
    one = np.array([1], np.int32)
    handle = agent.make_prepped_xfer("READ", engine.near, one, engine.far, one)
    agent.transfer(handle)
    assert finish(agent, handle) == "DONE"
    peer.kill()
    with pytest.raises(nixlBind.nixlRemoteDisconnectError) as caught:
        again = agent.make_prepped_xfer("READ", engine.near, one, engine.far, one)
        assert agent.transfer(again) != "DONE"
        finish(agent, again)
    assert type(caught.value).__name__ == "nixlRemoteDisconnectError"
    assert str(caught.value).startswith("NIXL_ERR_REMOTE_DISCONNECT")
    # The local knowledge of the peer stays until it is removed; all of it goes without an error.
    assert agent.check_remote_metadata(engine.name) is True
    agent.release_dlist_handle(engine.far)
    agent.remove_remote_agent(engine.name)
    assert agent.check_remote_metadata(engine.name) is False


def test_a_wrong_block_is_an_error_of_that_request_alone(engine):
    agent = engine.agent
    with pytest.raises(nixlBind.nixlInvalidParamError, match="NIXL_ERR_INVALID_PARAM"):
        agent.make_prepped_xfer("READ", engine.near, [0], engine.far, [LAYERS * BLOCKS])
    good = agent.make_prepped_xfer("READ", engine.near, [0], engine.far, [1])
    agent.transfer(good)
    assert finish(agent, good) == "DONE"
    assert engine.cache[0, 0] == 1


def test_a_side_without_rows_is_made(engine):
    """A worker whose blocks are all of one kind prepares an empty side for the other kind."""
    empty = rows(engine.cache.ctypes.data)[np.zeros(LAYERS, bool)]
    assert empty.shape == (0, 5)
    assert engine.agent.prep_xfer_dlist("NIXL_INIT_AGENT", empty, mem_type="DRAM")


def test_pages_in_files_of_a_pool(tmp_path):
    """A cache keeps pages in files it opened itself, all prepared once, addressed by number."""
    page, count = 4096, 8
    pages = np.zeros((count, page), np.uint8)
    pages[:] = np.arange(1, count + 1, dtype=np.uint8)[:, None]
    files = [os.open(tmp_path / f"slot{i}", os.O_CREAT | os.O_RDWR, 0o644) for i in range(count)]
    config = nixl_agent_config(
        backends=[],
        enable_prog_thread=True,
        sync_mode=nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT,
    )
    agent = nixl_agent("pages", config)
    agent.create_backend("POSIX", {"file_path": str(tmp_path), "use_direct_io": "False"})
    at = [pages.ctypes.data + i * page for i in range(count)]
    memory = agent.register_memory([(a, page, 0, "") for a in at], mem_type="DRAM")
    near = agent.prep_xfer_dlist("", agent.get_xfer_descs([(a, page, 0) for a in at], "DRAM"))
    registered = agent.register_memory([(0, page, fd, "") for fd in files], mem_type="FILE")
    far = agent.prep_xfer_dlist("pages", [(0, page, fd) for fd in files], mem_type="FILE")

    def run(operation, ours, theirs):
        handle = agent.make_prepped_xfer(operation, near, ours, far, theirs)
        agent.transfer(handle)
        state = finish(agent, handle)
        agent.release_xfer_handle(handle)
        return state

    try:
        assert run("WRITE", [0, 1, 2], [5, 6, 7]) == "DONE"
        assert run("READ", [3, 4, 5], [7, 6, 5]) == "DONE"
        assert pages[3:6, 0].tolist() == [3, 2, 1]
        with pytest.raises(nixlBind.nixlBackendError, match="NIXL_ERR_BACKEND"):
            run("READ", [0], [0])  # that file was never written
        assert run("READ", [0], [7]) == "DONE"  # and its failure is its own
        assert pages[0, 0] == 3
    finally:
        agent.release_dlist_handle(far)
        agent.release_dlist_handle(near)
        agent.deregister_memory(registered)
        agent.deregister_memory(memory)
        for fd in files:
            os.close(fd)
        agent.close()
