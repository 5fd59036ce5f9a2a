"""nixl._bindings on its own: numbers for handles, statuses for answers."""

from __future__ import annotations

import time

import nixl
import nixl._bindings as raw
import pytest

np = pytest.importorskip("numpy")


@pytest.fixture
def two(memory):
    """Two raw agents with a backend and memory each; the first knows the second."""
    agents, pieces, backends = [], [], []
    for name in ("raw-a", "raw-b"):
        agent = raw.nixlAgent(name, raw.nixlAgentConfig(True))
        backends.append(agent.createBackend("UCX", {}))
        pieces.append(memory(4096, len(agents) + 1))
        regs = raw.nixlRegDList(raw.DRAM_SEG, [(pieces[-1].address, 4096, 0, b"")])
        assert agent.registerMem(regs, [backends[-1]]) == raw.NIXL_SUCCESS
        agents.append(agent)
    assert agents[0].loadRemoteMD(agents[1].getLocalMD()) == b"raw-b"
    assert agents[1].loadRemoteMD(agents[0].getLocalMD()) == b"raw-a"
    yield agents, pieces, backends
    for agent in agents:
        agent._close()


def finish(agent, request) -> None:
    end = time.monotonic() + 10
    while agent.getXferStatus(request) == raw.NIXL_IN_PROG and time.monotonic() < end:
        pass
    assert agent.getXferStatus(request) == raw.NIXL_SUCCESS


def test_backends_are_numbers(two):
    (agent, other), _, (backend, same) = two
    assert isinstance(backend, int) and backend == same
    params, mems = agent.getBackendParams(backend)
    assert isinstance(params, dict) and "DRAM_SEG" in mems
    assert agent.getPluginParams("POSIX")[0]["use_uring"] == "false"
    with pytest.raises(nixl.nixlNotFoundError):
        agent.getPluginParams("NOPE")
    with pytest.raises(nixl.nixlInvalidParamError, match="backend handle 99999"):
        agent.getBackendParams(99999)
    with pytest.raises(nixl.nixlError):
        agent.createBackend("UCX", {})


def test_a_transfer_by_numbers(two):
    (agent, other), (near, far), (backend, _) = two
    local = raw.nixlXferDList(raw.DRAM_SEG, [(near.address, 64, 0)])
    remote = raw.nixlXferDList(raw.DRAM_SEG, [(far.address, 64, 0)])
    request = agent.createXferReq(raw.NIXL_WRITE, local, remote, "raw-b", b"note\0", [backend])
    assert isinstance(request, int)
    with pytest.raises(nixl.nixlNotPostedError):
        agent.getXferStatus(request)
    assert agent.postXferReq(request) in (raw.NIXL_SUCCESS, raw.NIXL_IN_PROG)
    finish(agent, request)
    assert far.get(0, 64) == b"\1" * 64
    assert agent.queryXferBackend(request) == backend
    assert agent.getXferTelemetry(request).totalBytes == 64
    assert len(agent.estimateXferCost(request)) == 3
    kept = {"raw-a": [b"before"]}
    end = time.monotonic() + 10
    while len(kept["raw-a"]) < 2 and time.monotonic() < end:
        assert other.getNotifs(kept) is kept
    assert kept == {"raw-a": [b"before", b"note\0"]}
    assert agent.releaseXferReq(request) == raw.NIXL_SUCCESS
    for call in (agent.postXferReq, agent.getXferStatus, agent.getXferTelemetry):
        with pytest.raises(nixl.nixlInvalidParamError):
            call(request)
        with pytest.raises(nixl.nixlInvalidParamError):
            call(0)


def test_prepared_lists_by_numbers(two):
    (agent, _), (near, far), (backend, _) = two
    rows = np.array([[far.address + i * 64, 64, 0] for i in range(4)], np.uint64)
    local = raw.nixlXferDList(raw.DRAM_SEG, [(near.address + i * 64, 64, 0) for i in range(4)])
    left = agent.prepXferDlist(local, [backend])
    right = agent.prepXferDlist("raw-b", raw.DRAM_SEG, rows, [backend])
    same = agent.prepXferDlist(agent_name="raw-b", descs=raw.nixlXferDList(raw.DRAM_SEG, rows))
    request = agent.makeXferReq(raw.NIXL_READ, left, [1, 2], right, np.array([1, 2]), b"")
    agent.postXferReq(request)
    finish(agent, request)
    assert near.get(0, 256) == b"\1" * 64 + b"\2" * 128 + b"\1" * 64
    agent.releaseXferReq(request)
    for number in (left, right, same):
        assert agent.releasedDlistH(number) == raw.NIXL_SUCCESS
    with pytest.raises(nixl.nixlInvalidParamError):
        agent.makeXferReq(raw.NIXL_READ, left, [1], right, [1])


def test_peers_by_status(two):
    (agent, other), (_, far), _ = two
    nothing = raw.nixlXferDList(raw.DRAM_SEG)
    assert agent.checkRemoteMD("raw-b", nothing) == raw.NIXL_SUCCESS
    assert agent.checkRemoteMD("nobody", nothing) == raw.NIXL_ERR_NOT_FOUND
    inside = raw.nixlXferDList(raw.DRAM_SEG, [(far.address, 64, 0)])
    outside = raw.nixlXferDList(raw.DRAM_SEG, [(far.address + 4096, 64, 0)])
    assert agent.checkRemoteMD("raw-b", inside) == raw.NIXL_SUCCESS
    assert agent.checkRemoteMD("raw-b", outside) == raw.NIXL_ERR_NOT_FOUND
    assert agent.makeConnection("raw-b", []) == raw.NIXL_SUCCESS
    assert agent.genNotif("raw-b", b"x") == raw.NIXL_SUCCESS
    assert agent.invalidateRemoteMD("raw-b") == raw.NIXL_SUCCESS
    assert agent.checkRemoteMD("raw-b", nothing) == raw.NIXL_ERR_NOT_FOUND
