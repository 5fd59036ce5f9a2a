"""A directory as the central store: what etcd does, for the agents of one host."""

from __future__ import annotations

import time

import nixl
import numpy as np
import pytest


def eventually(what, seconds: float = 60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)  # sleeps: between two looks


def descs_of(agent, array):
    return agent.get_xfer_descs([(array.ctypes.data, array.nbytes, 0)], "DRAM")


@pytest.mark.parametrize("prefix", ["", "file:", "file://"])
def test_agents_find_each_other_in_a_directory(make_agent, tmp_path, prefix):
    where = f"{prefix}{tmp_path}/store"
    a, b = (make_agent(name, metadata_store=where) for name in "ab")
    assert a.wait_for_peers(1, timeout=60) == [b.name]
    array = np.zeros(4096, np.uint8)
    b.register_memory(array)
    eventually(lambda: a.check_remote_metadata(b.name, descs_of(a, array)))
    b.close()
    eventually(lambda: a.peers() == [])


def test_one_central_store_at_a_time(make_agent, tmp_path, monkeypatch):
    monkeypatch.setenv("NIXL_ETCD_ENDPOINTS", "127.0.0.1:1")
    with pytest.raises(nixl.nixlInvalidParamError, match="more than one central store"):
        make_agent("a", metadata_store=str(tmp_path), use_etcd=True)
    agent = make_agent("b", metadata_store=str(tmp_path))  # the environment is no request
    assert str(tmp_path) in agent.dump_state()
