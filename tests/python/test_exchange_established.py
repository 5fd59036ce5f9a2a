"""Metadata by address as existing clients use it, in two processes. Holds for the published package
1.5.1 as well as for ours: run this file with an interpreter that has the other one."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest
from nixl._api import nixl_agent, nixl_agent_config

np = pytest.importorskip("numpy")

HERE, SIZE = "127.0.0.1", 1 << 16

# The target: listens, waits for the initiator's metadata, tells it where the memory is, waits for
# the end of the transfer, and then until the initiator has taken its metadata back.
TARGET = """
import sys, time
import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

port, size = int(sys.argv[1]), int(sys.argv[2])
agent = nixl_agent("target", nixl_agent_config(True, True, port))
memory = np.zeros(size, np.uint8)
descs = agent.register_memory([(memory.ctypes.data, size, 0, "")], "DRAM")
print("ready", flush=True)
end = time.monotonic() + 60
while not agent.check_remote_metadata("initiator"):
    assert time.monotonic() < end
    time.sleep(0.001)  # sleeps: between two looks
agent.send_notif("initiator", agent.get_serialized_descs(descs.trim()))
while not agent.check_remote_xfer_done("initiator", b"written"):
    assert time.monotonic() < end
    time.sleep(0.001)  # sleeps: between two looks
print(memory.min(), memory.max(), flush=True)
while agent.check_remote_metadata("initiator"):
    assert time.monotonic() < end
    time.sleep(0.001)  # sleeps: between two looks
print("gone", flush=True)
"""


def eventually(what, seconds: float = 60):
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)  # sleeps: between two looks
    return value


@pytest.fixture
def port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def target(port):
    process = subprocess.Popen(
        [sys.executable, "-c", TARGET, str(port), str(SIZE)], stdout=subprocess.PIPE, text=True
    )
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def told(process, wanted: str) -> bool:
    """Reads on until a line is that one; the other package writes its log there."""
    while line := process.stdout.readline():
        if line == wanted:
            return True
    return False


@pytest.mark.parametrize("listens", [True, False])
def test_fetch_send_transfer_invalidate(target, port, listens):
    if not listens and not hasattr(nixl_agent, "listen_port"):
        pytest.skip("the other package fetches only with a listener of its own")
    with socket.create_server(("", 0)) as server:
        own = server.getsockname()[1]
    agent = nixl_agent("initiator", nixl_agent_config(True, listens, own))
    memory = np.full(SIZE, 7, np.uint8)
    agent.register_memory([(memory.ctypes.data, SIZE, 0, "")], "DRAM")
    assert agent.fetch_remote_metadata("target", HERE, port) is None
    assert agent.send_local_metadata(HERE, port) is None
    eventually(lambda: agent.check_remote_metadata("target"))
    notifs = eventually(lambda: agent.get_new_notifs().get("target"))
    theirs = agent.deserialize_descs(notifs[0])
    assert agent.check_remote_metadata("target", theirs)
    mine = agent.get_xfer_descs([(memory.ctypes.data, SIZE, 0)], "DRAM")
    handle = agent.initialize_xfer("WRITE", mine, theirs, "target", b"written")
    assert agent.transfer(handle) != "ERR"
    eventually(lambda: agent.check_xfer_state(handle) == "DONE")
    assert told(target, "7 7\n")
    agent.release_xfer_handle(handle)
    agent.remove_remote_agent("target")
    agent.invalidate_local_metadata(HERE, port)
    assert told(target, "gone\n")


def test_part_of_the_metadata(target, port):
    with socket.create_server(("", 0)) as server:
        own = server.getsockname()[1]
    agent = nixl_agent("initiator", nixl_agent_config(True, True, own))
    memory = np.zeros(SIZE, np.uint8)
    descs = agent.register_memory([(memory.ctypes.data, SIZE, 0, "")], "DRAM")
    agent.send_partial_agent_metadata(
        descs, inc_conn_info=True, backends=["UCX"], ip_addr=HERE, port=port
    )
    assert eventually(lambda: agent.get_new_notifs().get("target"))
    agent.invalidate_local_metadata(HERE, port)


def test_two_listeners_of_one_port(target, port):
    with pytest.raises(RuntimeError):
        nixl_agent("second", nixl_agent_config(True, True, port))
    with pytest.raises(Exception, match="INVALID_PARAM"):
        nixl_agent("third").fetch_remote_metadata("anybody")
